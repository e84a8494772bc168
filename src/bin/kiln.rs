//! `kiln`: run AMI-style images as instances.

fn main() -> std::process::ExitCode {
    kiln_cli::main(std::env::args_os())
}
