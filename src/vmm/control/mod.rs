//! The control socket: any number of clients, none of which can hold up the machine.

mod client;
mod server;

pub use server::{ControlServer, Incoming};
