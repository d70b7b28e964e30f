//! The user service.

use std::process::ExitCode;

fn main() -> ExitCode {
    cell_kit::main(&titan_social::user::SERVICE)
}
