//! Turns proto/ into Rust. Two descriptor sets are made from the same files: the true one, which reflection serves,
//! and one for the generated server, in which `Table.Upload` reads like a stream of its own request message. On the
//! wire it stays unary; `src/api/grpc/frames.rs` cuts the one large message into many small ones on the way in.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let mut descriptors = protox::compile(["table.proto", "numstore.proto", "tally.proto"], ["proto"])?;
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    let upload = descriptors
        .file
        .iter_mut()
        .flat_map(|file| &mut file.service)
        .filter(|service| service.name() == "Table")
        .flat_map(|service| &mut service.method)
        .find(|method| method.name() == "Upload")
        .ok_or("table.proto has no Table.Upload")?;
    upload.client_streaming = Some(true);

    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::api::grpc::adapter::Codec")
        .compile_fds(descriptors)?;
    Ok(())
}
