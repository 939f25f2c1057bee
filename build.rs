//! Generates Rust code from proto/, and the descriptors that the reflection service returns. Lists the files of the console.

use std::{
    env,
    error::Error,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let descriptors = protox::compile(["table.proto", "numstore.proto", "tally.proto"], ["proto"])?;
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    fs::write(out.join("console_files.rs"), console_files()?)?;

    tonic_prost_build::configure().bytes(".").codec_path("crate::proto::codec::Codec").compile_fds(descriptors)?;
    Ok(())
}

/// The files of inputs/ that the console offers as a demo.
const DEMO: [&str; 4] = ["simple.csv", "second.csv", "plays.csv", "survey.csv"];

/// A Rust array of paths and contents: the files of web/ at `/console/...`, and its `index.html` at `/`.
fn console_files() -> Result<String, Box<dyn Error>> {
    println!("cargo:rerun-if-changed=web");
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let mut files = Vec::new();
    collect(&root.join("web"), "/console", &mut files)?;
    for name in DEMO {
        println!("cargo:rerun-if-changed=inputs/{name}");
        files.push((format!("/console/demo/{name}"), root.join("inputs").join(name)));
    }
    let mut list = String::from("[");
    for (path, file) in files {
        let path = if path == "/console/index.html" { "/" } else { &path };
        write!(list, "({path:?}, include_bytes!({:?})),", file.display().to_string())?;
    }
    list.push(']');
    Ok(list)
}

/// Adds all files below `folder`, by the paths at which they are served, in the order of their names.
fn collect(folder: &Path, path: &str, files: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (file, path) = (entry.path(), format!("{path}/{}", entry.file_name().to_string_lossy()));
        if file.is_dir() {
            collect(&file, &path, files)?;
        } else {
            files.push((path, file));
        }
    }
    Ok(())
}
