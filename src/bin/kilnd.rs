//! `kilnd`: serves the control plane as an EC2-compatible API.

fn main() -> std::process::ExitCode {
    kiln_api::daemon::main(std::env::args_os(), std::sync::Arc::new(kiln_sts::Sts))
}
