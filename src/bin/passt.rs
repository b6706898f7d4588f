//! The `passt` program: networking for virtual machines.

use passt::config::options::Program;
use std::process::ExitCode;

fn main() -> ExitCode {
    passt::app::main(Program::Passt)
}
