//! Text from an image, made safe to show.

/// `text` with everything that could move a terminal's cursor or break a line replaced by `?`, and
/// cut after 200 characters. Names and titles from a disk go through here before a person sees them.
pub fn printable(text: &str) -> String {
    let mut shown: String =
        text.chars().take(MAX_CHARS).map(|c| if is_harmless(c) { c } else { '?' }).collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

const MAX_CHARS: usize = 200;

fn is_harmless(c: char) -> bool {
    // Besides the controls: line separators and the marks that turn the direction of writing.
    !c.is_control()
        && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_line_ends_and_direction_marks_are_replaced() {
        assert_eq!(printable("a\u{1b}[31m\nb\u{202e}ü"), "a?[31m?b?ü");
    }

    #[test]
    fn long_text_is_cut() {
        assert_eq!(printable(&"é".repeat(200)), "é".repeat(200));
        assert_eq!(printable(&"é".repeat(201)), format!("{}…", "é".repeat(200)));
    }
}
