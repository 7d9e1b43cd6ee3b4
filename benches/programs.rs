//! Where the programs lie that a benchmark starts, and how a program ends.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Success, or what `program` has to complain of and failure.
pub fn exit_code(program: &str, result: Result<(), Box<dyn Error>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The directory of this program: all others are built into it.
///
/// # Errors
///
/// The kernel's, when it does not tell.
pub fn directory() -> io::Result<PathBuf> {
    let this = std::env::current_exe()?;
    this.parent().map(Path::to_owned).ok_or_else(|| io::Error::other("this program lies in no directory"))
}

/// The program `name` beside this one.
///
/// # Errors
///
/// `NotFound`, with the command that builds it.
pub fn beside(name: &str) -> io::Result<String> {
    let path = directory()?.join(name);
    if path.exists() {
        return Ok(path.display().to_string());
    }
    let how =
        "cargo build --release -p dhaga-benches -p dhaga-examples --features dhaga-benches/rivals --bins --examples";
    Err(io::Error::new(io::ErrorKind::NotFound, format!("{} is not built: {how}", path.display())))
}

/// The sources of this package.
pub fn sources() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Go toolchain: `$GO`, or what `install_go.sh` has installed, or `go` on the path.
pub fn go_toolchain() -> Option<PathBuf> {
    let installed = directory().ok()?.parent()?.join("go/bin/go");
    let candidates = [std::env::var_os("GO").map(PathBuf::from), Some(installed), Some(PathBuf::from("go"))];
    candidates.into_iter().flatten().find(|go| Command::new(go).arg("version").output().is_ok())
}

/// What stands where a figure of Go would.
pub const GO_NOT_FOUND: &str = "not found: run benches/install_go.sh";

/// Builds `go/NAME` into the directory of this program; `None` when there is no toolchain.
///
/// # Errors
///
/// When the compiler refuses it.
pub fn build_go(name: &str) -> io::Result<Option<String>> {
    let Some(go) = go_toolchain() else {
        return Ok(None);
    };
    let built = directory()?.join(format!("go_{name}"));
    let status = Command::new(go)
        .args(["build", "-o"])
        .arg(&built)
        .arg(format!("./{name}"))
        .current_dir(sources().join("go"))
        // A toolchain that is too old shall say so, not fetch another.
        .env("GOTOOLCHAIN", "local")
        .status()?;
    if !status.success() {
        return Err(io::Error::other(format!(
            "go build ./{name} failed; with too old a Go, run benches/install_go.sh"
        )));
    }
    Ok(Some(built.display().to_string()))
}
