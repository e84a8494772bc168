//! The serial console of an instance on this terminal.
//!
//! ```text
//!   terminal ─ raw bytes ▶ stdin thread ▶ Escape ─ ConsoleInput, PowerButton … ▶ VMM
//!            ◀ stdout thread ◀───────────────────── VmmEvent::Console ─────────◀
//! ```

mod escape;
mod session;
mod terminal;

pub use session::{Events, Input, Outcome, Quit, Session, Signals};
pub use terminal::restore_on_panic;
