//! `kiln identity …`.

use std::path::Path;

use crate::error::Failure;
use crate::metadata_args::IdentityCommand;
use crate::{open, print_json};

/// Dispatches. What is printed is public.
pub fn identity(state_dir: &Path, command: IdentityCommand) -> Result<(), Failure> {
    let keys = open(state_dir)?.keys()?;
    match command {
        IdentityCommand::Certificate => crate::print(&keys.certificate_pem()),
        IdentityCommand::Keys => print_json(&keys.session_key_set()),
    }
}
