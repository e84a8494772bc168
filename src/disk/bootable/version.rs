//! Comparison of version strings (UAPI Version Format Specification).

use std::cmp::Ordering;

/// Orders two versions, newer is greater: `6.1.9 < 6.1.10`, `1~rc1 < 1 < 1.1`.
pub(crate) fn compare(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.as_bytes(), right.as_bytes());
    loop {
        left = skip_noise(left);
        right = skip_noise(right);
        // A pre-release is older than anything, even than nothing.
        if let Some(order) = separator(b'~', &mut left, &mut right) {
            return order;
        }
        if left.is_empty() || right.is_empty() {
            return left.len().min(1).cmp(&right.len().min(1));
        }
        for mark in [b'-', b'^', b'.'] {
            if let Some(order) = separator(mark, &mut left, &mut right) {
                return order;
            }
        }
        let is_digit = |text: &[u8]| text.first().is_some_and(u8::is_ascii_digit);
        let order = if is_digit(left) || is_digit(right) {
            let (a, b) = (take(&mut left, u8::is_ascii_digit), take(&mut right, u8::is_ascii_digit));
            let (a, b) = (trim_zeroes(a), trim_zeroes(b));
            a.len().cmp(&b.len()).then_with(|| a.cmp(b))
        } else {
            let a = take(&mut left, u8::is_ascii_alphabetic);
            a.cmp(take(&mut right, u8::is_ascii_alphabetic))
        };
        if order.is_ne() {
            return order;
        }
    }
}

/// Both begin with `mark`: skips it. One does: that one is older.
fn separator(mark: u8, left: &mut &[u8], right: &mut &[u8]) -> Option<Ordering> {
    let a = left.strip_prefix(&[mark]);
    let b = right.strip_prefix(&[mark]);
    match (a, b) {
        (Some(a), Some(b)) => {
            (*left, *right) = (a, b);
            None
        }
        (Some(_), None) => Some(Ordering::Less),
        (None, Some(_)) => Some(Ordering::Greater),
        (None, None) => None,
    }
}

fn skip_noise(text: &[u8]) -> &[u8] {
    let counts = |c: &u8| c.is_ascii_alphanumeric() || b"~-^.".contains(c);
    let start = text.iter().position(counts).unwrap_or(text.len());
    text.get(start..).unwrap_or_default()
}

fn take<'a>(text: &mut &'a [u8], belongs: fn(&u8) -> bool) -> &'a [u8] {
    let end = text.iter().position(|c| !belongs(c)).unwrap_or(text.len());
    let (taken, rest) = text.split_at(end);
    *text = rest;
    taken
}

fn trim_zeroes(digits: &[u8]) -> &[u8] {
    let start = digits.iter().position(|&c| c != b'0');
    digits.get(start.unwrap_or(digits.len())..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_order() {
        let sorted = [
            "~1",
            "",
            "1~rc1",
            "1",
            "1-1",
            "1^x",
            "1.a",
            "1.1",
            "1.2",
            "1.10",
            "2~a",
            "2",
            "2-3.fc39",
            "2-12.fc39",
            "10",
            "99999999999999999999999",
            "A",
            "a",
            "ab",
        ];
        for (i, a) in sorted.iter().enumerate() {
            for (j, b) in sorted.iter().enumerate() {
                // Numbers against letters are compared as numbers, where letters count as 0.
                if a.starts_with(char::is_alphabetic) != b.starts_with(char::is_alphabetic) {
                    continue;
                }
                assert_eq!(compare(a, b), i.cmp(&j), "{a} and {b}");
            }
        }
        assert!(compare("6.1.0-18-cloud-amd64", "6.1.0-9-cloud-amd64").is_gt());
        assert!(compare("6.1.0-18-amd64", "6.1.0-18-cloud-amd64").is_lt());
        assert!(compare("01_2", "1__02").is_eq());
    }
}
