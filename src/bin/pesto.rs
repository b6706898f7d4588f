//! The `pesto` program: changes the forwarded ports of a running `passt` or `pasta`.

use std::process::ExitCode;

fn main() -> ExitCode {
    passt::app::pesto()
}
