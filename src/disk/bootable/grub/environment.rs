//! `grubenv`: the 1024-byte block that keeps variables between boots (GRUB manual §5.3).

const SIGNATURE: &str = "# GRUB Environment Block\n";

/// Names and values of an environment block; nothing if it is not one. A backslash in a value
/// protects the next character, a line end included.
pub(crate) fn parse_environment_block(bytes: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(bytes);
    let Some(body) = text.strip_prefix(SIGNATURE) else {
        return Vec::new();
    };
    let mut variables = Vec::new();
    let mut chars = body.chars();
    while let Some(line) = logical_line(&mut chars) {
        // The rest of the block is filled with `#`.
        if line.starts_with('#') {
            continue;
        }
        if let Some((name, value)) = line.split_once('=') {
            variables.push((name.to_owned(), value.to_owned()));
        }
    }
    variables
}

fn logical_line(chars: &mut std::str::Chars<'_>) -> Option<String> {
    let mut line = String::new();
    let mut any = false;
    while let Some(c) = chars.next() {
        any = true;
        match c {
            '\n' => break,
            '\\' => line.extend(chars.next()),
            _ => line.push(c),
        }
    }
    any.then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_read_and_padding_is_not() {
        let block = b"# GRUB Environment Block\nsaved_entry=abc-6.1\nkernelopts=root=UUID=1 ro \\\\x\n####";
        let pair = |(a, b): (&str, &str)| (a.to_owned(), b.to_owned());
        assert_eq!(
            parse_environment_block(block),
            [("saved_entry", "abc-6.1"), ("kernelopts", "root=UUID=1 ro \\x")].map(pair)
        );
    }

    #[test]
    fn other_files_hold_no_variables() {
        assert_eq!(parse_environment_block(b"a=b\n"), []);
        assert_eq!(parse_environment_block(b""), []);
    }
}
