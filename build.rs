//! Generates Rust code from proto/, and the descriptors that the reflection service returns.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let descriptors = protox::compile(["table.proto", "numstore.proto", "tally.proto"], ["proto"])?;
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure().bytes(".").codec_path("crate::proto::codec::Codec").compile_fds(descriptors)?;
    Ok(())
}
