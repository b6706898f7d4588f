//! The `pasta` program: networking for namespaces.

use std::process::ExitCode;

fn main() -> ExitCode {
    passt::app::main(passt::app::Program::Pasta)
}
