//! The `passt` program: networking for virtual machines.

use std::process::ExitCode;

fn main() -> ExitCode {
    passt::app::main(passt::app::Program::Passt)
}
