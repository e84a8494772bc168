//! Keys that are for us and not for the guest: Ctrl-] and one more.

/// Ctrl-], as in telnet: no shell, editor or screen program uses it.
pub const PREFIX: u8 = 0x1d;

/// What typed bytes mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// For the guest.
    Send(Vec<u8>),
    /// Press the power button.
    PowerButton,
    /// End the machine, or only the session.
    Quit,
    /// Reset the machine.
    Reset,
    /// Show counters.
    Stats,
    /// Show the keys.
    Help,
}

/// Keys with their meaning, for people.
pub const HELP: [(&str, &str); 6] = [
    ("Ctrl-] q", "quit"),
    ("Ctrl-] p", "press the power button"),
    ("Ctrl-] r", "reset the machine"),
    ("Ctrl-] s", "show counters"),
    ("Ctrl-] ?", "show these keys"),
    ("Ctrl-] Ctrl-]", "send Ctrl-] to the guest"),
];

/// Takes bytes as they are typed, in pieces of any size.
#[derive(Debug, Default)]
pub struct Escape {
    after_prefix: bool,
}

impl Escape {
    /// What these bytes mean, in order.
    pub fn feed(&mut self, input: &[u8]) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut plain = Vec::new();
        for &byte in input {
            if !self.after_prefix {
                if byte == PREFIX {
                    self.after_prefix = true
                } else {
                    plain.push(byte)
                }
                continue;
            }
            self.after_prefix = false;
            let action = match byte {
                PREFIX => {
                    plain.push(PREFIX);
                    continue;
                }
                b'q' | b'Q' => Action::Quit,
                b'p' | b'P' => Action::PowerButton,
                b'r' | b'R' => Action::Reset,
                b's' | b'S' => Action::Stats,
                _ => Action::Help,
            };
            if !plain.is_empty() {
                actions.push(Action::Send(std::mem::take(&mut plain)));
            }
            actions.push(action);
        }
        if !plain.is_empty() {
            actions.push(Action::Send(plain));
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn send(bytes: &[u8]) -> Action {
        Action::Send(bytes.to_vec())
    }

    #[test]
    fn plain_bytes_pass_and_commands_do_not() {
        let mut escape = Escape::default();
        assert_eq!(escape.feed(b"ls\x03\n"), [send(b"ls\x03\n")]);
        assert_eq!(escape.feed(b"a\x1dpb\x1dq"), [send(b"a"), Action::PowerButton, send(b"b"), Action::Quit]);
        assert_eq!(escape.feed(b"\x1dx"), [Action::Help]);
        assert_eq!(escape.feed(b"x\x1d\x1dy"), [send(b"x\x1dy")]);
    }

    #[test]
    fn prefix_and_key_may_arrive_apart() {
        let mut escape = Escape::default();
        assert_eq!(escape.feed(b"\x1d"), []);
        assert_eq!(escape.feed(b"s"), [Action::Stats]);
        assert_eq!(escape.feed(b"s"), [send(b"s")]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn meaning_does_not_depend_on_the_split(input in prop::collection::vec(prop_oneof![Just(PREFIX), any::<u8>()], 0..40), at in 0usize..40) {
            // Neighbouring sends are one.
            let join = |actions: Vec<Action>| {
                let mut joined: Vec<Action> = Vec::new();
                for action in actions {
                    match (joined.last_mut(), action) {
                        (Some(Action::Send(last)), Action::Send(more)) => last.extend(more),
                        (_, action) => joined.push(action),
                    }
                }
                joined
            };
            let whole = Escape::default().feed(&input);
            let (head, tail) = input.split_at(at.min(input.len()));
            let mut escape = Escape::default();
            let mut parts = escape.feed(head);
            parts.extend(escape.feed(tail));
            prop_assert_eq!(join(whole), join(parts));
        }
    }
}
