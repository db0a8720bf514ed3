//! libtorch for the tests of its backend: what the environment names, or a copy below `target/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::process::root;

/// What `tch` 0.24 is built for, and the two libraries of CUDA that even the CPU half links.
const PACKAGES: [&str; 3] =
    ["torch==2.11.0", "nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cupti==13.0.85"];

/// Sets what a command needs to build and run with libtorch: as the environment says, or from a
/// virtual environment below `target/`, which is made at the first call (530 MB to fetch).
///
/// # Errors
/// Why there is none, as a sentence: tests are skipped then.
pub fn provide(command: &mut Command) -> Result<(), String> {
    run(Command::new("c++").arg("--version"), "no C++ compiler `c++`")?;
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if named("LIBTORCH_USE_PYTORCH").is_some() {
        return Ok(());
    }
    let torch = match named("LIBTORCH") {
        Some(folder) => PathBuf::from(folder),
        None => installed()?,
    };
    let mut paths = vec![torch.join("lib")];
    // The wheels of CUDA lie beside that of libtorch.
    if let Some(packages) = torch.parent() {
        paths.push(packages.join("nvidia/cu13/lib"));
    }
    paths.extend(std::env::var_os("LD_LIBRARY_PATH").iter().flat_map(std::env::split_paths));
    let paths = std::env::join_paths(paths).map_err(|error| error.to_string())?;
    command.env("LIBTORCH", torch).env("LD_LIBRARY_PATH", paths);
    Ok(())
}

fn installed() -> Result<PathBuf, String> {
    let folder = root().join("target/libtorch");
    let complete = folder.join("complete");
    if fs::read_to_string(&complete).is_ok_and(|text| text == PACKAGES.join("\n")) {
        return torch_in(&folder);
    }
    eprintln!("libtorch is not here: fetching {} to target/libtorch", PACKAGES[0]);
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|error| error.to_string())?;
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder), "no virtual environment")?;
    let mut pip = Command::new(folder.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--no-cache-dir"]);
    pip.args(["--disable-pip-version-check", "--timeout", "30", "--retries", "1"]).args(PACKAGES);
    run(&mut pip, "pip cannot fetch libtorch")?;
    let torch = torch_in(&folder)?;
    fs::write(&complete, PACKAGES.join("\n")).map_err(|error| error.to_string())?;
    Ok(torch)
}

fn torch_in(environment: &Path) -> Result<PathBuf, String> {
    let missing = || format!("{} holds no libtorch", environment.display());
    let versions = fs::read_dir(environment.join("lib")).map_err(|_| missing())?;
    let folders = versions.flatten().map(|entry| entry.path().join("site-packages/torch"));
    folders.into_iter().find(|torch| torch.join("lib/libtorch_cpu.so").exists()).ok_or_else(missing)
}

fn run(command: &mut Command, what: &str) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{what}: {e}"))?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = error.lines().last().unwrap_or_default();
    if output.status.success() { Ok(()) } else { Err(format!("{what}: {last}")) }
}
