//! The cart service.

use std::process::ExitCode;

fn main() -> ExitCode {
    cell_kit::main(&titan_transaction::cart::SERVICE)
}
