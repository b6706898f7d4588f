//! The `pasta` program: networking for namespaces.

use passt::config::options::Program;
use std::process::ExitCode;

fn main() -> ExitCode {
    passt::app::main(Program::Pasta)
}
