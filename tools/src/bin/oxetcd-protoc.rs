//! A stand-in for `protoc`, for build scripts of dependencies that insist on running one.
//!
//! Understands exactly what prost's build support passes, and compiles with protox. Called by
//! cargo through the `PROTOC` variable in `.cargo/config.toml`.

use std::{env, fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "a compiler reports on standard error")]
            {
                eprintln!("oxetcd-protoc: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let mut arguments = env::args().skip(1);
    let mut output = None;
    let mut includes = Vec::new();
    let mut files = Vec::new();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--include_imports"
            | "--include_source_info"
            | "--experimental_allow_proto3_optional" => {}
            "-o" => output = arguments.next(),
            "-I" => includes.extend(arguments.next()),
            other if other.starts_with('-') => bail!("unknown option {other}"),
            other => files.push(PathBuf::from(other)),
        }
    }
    let output = output.context("no output file given (-o)")?;
    let mut compiler = protox::Compiler::new(&includes)?;
    compiler.include_imports(true).include_source_info(true);
    for file in &files {
        compiler.open_file(file)?;
    }
    fs::write(&output, compiler.encode_file_descriptor_set())
        .with_context(|| format!("cannot write {output}"))
}
