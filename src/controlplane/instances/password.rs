//! The password report of a Windows guest.
//!
//! Its launch agent prints to the first serial port, once per life of the instance:
//!
//! ```text
//!   2024/05/07 09:12:44Z: Username: Administrator
//!   2024/05/07 09:12:44Z: Password: <Password>
//!   i5Yp…==                                       base64 of RSA PKCS #1 v1.5, key of the instance
//!   </Password>
//!   2024/05/07 09:12:44Z: Message: Windows is Ready to use
//! ```
//!
//! All of it is the guest's word: it is looked at with bounds, and nothing but base64 comes out.

/// How much of a console log is searched, from its beginning: the report comes at the first boot.
pub(super) const SEARCHED: usize = 4 << 20;
/// Most opening tags that are looked at.
const MAX_TAGS: usize = 1000;
const READY: &[u8] = b"Windows is Ready to use";
const OPEN: &[u8] = b"<Password>";
const CLOSE: &[u8] = b"</Password>";
/// Longest report: a key of 16 384 bits gives 2732 characters; lines may be broken.
const MAX_REPORT: usize = 4096;

/// What a guest reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PasswordReport {
    /// `PasswordData` of the EC2 API: base64, encrypted for the instance's key.
    pub password_data: String,
    /// Whether the guest has said that it is ready.
    pub ready: bool,
}

/// Finds the last whole report in what a guest printed.
pub fn find_password(console: &[u8]) -> Option<PasswordReport> {
    let mut last = None;
    let mut rest = console.get(..console.len().min(SEARCHED)).unwrap_or_default();
    for _ in 0..MAX_TAGS {
        let Some(at) = find(rest, OPEN) else { break };
        rest = rest.get(at + OPEN.len()..).unwrap_or_default();
        let window = rest.get(..rest.len().min(MAX_REPORT)).unwrap_or_default();
        if let Some(data) = find(window, CLOSE).and_then(|end| base64_text(window.get(..end)?)) {
            last = Some((data, rest));
        }
    }
    let (password_data, after) = last?;
    Some(PasswordReport { password_data, ready: find(after, READY).is_some() })
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

/// The characters of one base64 value, without the white space around and between its lines.
fn base64_text(bytes: &[u8]) -> Option<String> {
    use base64::Engine as _;
    let text: String = bytes.iter().filter(|b| !b.is_ascii_whitespace()).map(|b| char::from(*b)).collect();
    let decoded = base64::engine::general_purpose::STANDARD.decode(&text).ok()?;
    (!decoded.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn console(data: &str) -> String {
        format!(
            "2024/05/07 09:12:40Z: Windows sysprep configuration complete.\r\n\
             2024/05/07 09:12:44Z: Username: Administrator\r\n\
             2024/05/07 09:12:44Z: Password: <Password>\r\n{data}\r\n</Password>\r\n\
             2024/05/07 09:12:44Z: Message: Windows is Ready to use\r\n"
        )
    }

    #[test]
    fn report_is_found_as_agents_write_it() {
        let report = find_password(console("aGVsbG8=").as_bytes());
        assert_eq!(report, Some(PasswordReport { password_data: "aGVsbG8=".into(), ready: true }));
        let broken = find_password(console("aGVs\r\nbG8=").as_bytes()).unwrap();
        assert_eq!(broken.password_data, "aGVsbG8=");
        let text = console("aGVsbG8=");
        let unready = text.split("2024/05/07 09:12:44Z: Message").next().unwrap();
        assert!(!find_password(unready.as_bytes()).unwrap().ready);
        let twice = console("aGVsbG8=") + &console("d29ybGQ=");
        assert_eq!(find_password(twice.as_bytes()).unwrap().password_data, "d29ybGQ=");
    }

    #[test]
    fn what_is_no_report_is_not_taken_for_one() {
        let long = "A".repeat(MAX_REPORT);
        for text in ["", "Password: <Password>", "<Password></Password>", "<Password>\x1b[2J</Password>"] {
            assert_eq!(find_password(text.as_bytes()), None, "{text}");
        }
        assert_eq!(find_password(console("not base64!").as_bytes()), None);
        assert_eq!(find_password(console(&long).as_bytes()), None);
        assert_eq!(find_password(console("null").replace("null", "").as_bytes()), None);
        let hidden = format!("<Password>{}", console("aGVsbG8="));
        assert_eq!(find_password(hidden.as_bytes()).unwrap().password_data, "aGVsbG8=");
    }

    proptest! {
        #[test]
        fn any_console_gives_base64_or_nothing(text in "(<Password>|</Password>|[A-Za-z0-9+/=]{0,8}|.){0,40}") {
            if let Some(report) = find_password(text.as_bytes()) {
                prop_assert!(report.password_data.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b)));
            }
        }
    }
}
