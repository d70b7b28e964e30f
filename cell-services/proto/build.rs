//! Compiles the contracts of the services with protox, which needs no protoc.

use std::path::PathBuf;
use std::{env, fs};

use prost::Message;

const SERVICES: [&str; 3] = ["cart", "order", "user"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo:rerun-if-changed=proto");
    for service in SERVICES {
        let set = protox::compile([format!("titan/{service}/v1/{service}.proto")], ["proto"])?;
        fs::write(out.join(format!("{service}.bin")), set.encode_to_vec())?;
        tonic_prost_build::configure()
            .emit_rerun_if_changed(false)
            // An order that is the same in every encoding: requests are compared by their bytes.
            .btree_map(".")
            .compile_fds(set)?;
    }
    Ok(())
}
