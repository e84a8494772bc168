//! `application/x-www-form-urlencoded`, as bodies and query strings have it.

/// Parameters of one request. RunInstances with all that it can carry has some hundreds.
const MAX_PARAMETERS: usize = 4000;
/// Longest name in bytes.
const MAX_NAME: usize = 256;

/// Names and values in the order of the request.
pub type Parameters = Vec<(String, String)>;

/// Why a form cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// More parameters than anything needs.
    #[error("The request has more than {MAX_PARAMETERS} parameters")]
    TooMany,
    /// A name longer than any.
    #[error("The request has a parameter whose name is longer than {MAX_NAME} bytes")]
    LongName,
    /// `%` without two hexadecimal digits.
    #[error("The request has a parameter that is not percent-encoded")]
    Encoding,
    /// Not UTF-8.
    #[error("The request has a parameter that is not UTF-8")]
    Utf8,
}

/// Reads a form.
pub fn parse(form: &str) -> Result<Parameters, FormError> {
    let mut parameters = Vec::new();
    for pair in form.split('&').filter(|pair| !pair.is_empty()) {
        if parameters.len() == MAX_PARAMETERS {
            return Err(FormError::TooMany);
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = unescape(name)?;
        if name.len() > MAX_NAME {
            return Err(FormError::LongName);
        }
        parameters.push((name, unescape(value)?));
    }
    Ok(parameters)
}

fn unescape(text: &str) -> Result<String, FormError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => match (rest.next().and_then(digit), rest.next().and_then(digit)) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return Err(FormError::Encoding),
            },
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| FormError::Utf8)
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}
