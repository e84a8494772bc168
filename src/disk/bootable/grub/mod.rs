//! `grub.cfg`: evaluated as the script it is.
//!
//! ```text
//! grub.cfg ─lexer─▶ words ─parser─▶ blocks ─Shell─▶ variables + menu ─default─▶ entry ─Shell─▶ Candidate
//!                                               ▲
//!                              grubenv, sourced files, BLS entries (blscfg)
//! ```
//!
//! Stock configurations choose root device, default entry and even the kernel with variables, tests
//! and functions, so that nothing short of running them gives what GRUB would boot. What GRUB can do
//! and Kiln cannot (fonts, terminals, keys) fails or succeeds as on a machine with a serial console
//! and nobody at the keyboard. Writing (`save_env`) does nothing: an entry picked for one boot only
//! would be picked on every boot, so `next_entry` is not loaded.
//!
//! Steps, nesting, menu size, and the sizes of words and variables are bounded.

mod builtin;
mod environment;
mod lexer;
mod menu;
mod parser;
mod shell;
mod test_command;
#[cfg(test)]
mod tests;

pub(crate) use environment::parse_environment_block;
pub(crate) use menu::Menu;
pub(crate) use shell::Shell;

/// Why a script does not end in a menu.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// Not the GRUB language.
    #[error("line {line} makes no sense")]
    Syntax {
        /// From 1.
        line: u32,
    },
    /// Blocks, functions or files within each other.
    #[error("it is nested too deeply")]
    TooDeep,
    /// More work than any usual script.
    #[error("it runs for too long")]
    TooLong,
}
