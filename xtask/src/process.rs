//! Running other programs from the workspace root.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// The workspace root.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// The cargo that runs this task, as if it were called from a shell.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // What `cargo run` says of this task to itself. The build script of `ring` looks at it, so that
    // a build by a task and one from a shell would undo each other's, and all that needs it.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_of_outer_cargo) {
            command.env_remove(name);
        }
    }
    command
}

fn is_of_outer_cargo(name: &str) -> bool {
    name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
}

/// `cargo` with arguments.
pub fn cargo_with<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = cargo();
    command.args(arguments);
    command
}

/// Whether `cargo <name>` is installed.
pub fn has_cargo_command(name: &str) -> bool {
    cargo_with([name, "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Shows the command, runs it, and fails if it does.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    eprintln!("$ {shown}");
    let status = command.status().with_context(|| format!("cannot start `{shown}`"))?;
    ensure!(status.success(), "`{shown}` failed with {status}");
    Ok(())
}

fn show(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_stem().unwrap_or_default();
    let mut words = vec![program.to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Builds a binary of the workspace in release mode; gives its path.
pub fn release_binary(package: &str) -> Result<PathBuf> {
    executable(&mut cargo_with(["build", "--release", "--package", package, "--bin", package]))
}

/// Runs a `cargo build` of one binary; gives its path.
pub fn executable(build: &mut Command) -> Result<PathBuf> {
    let found = built(build, |message| message["executable"].as_str().map(PathBuf::from))?;
    found.with_context(|| format!("`{}` named no executable", show(build)))
}

/// Runs a `cargo build`; gives the file that was wanted of the last message that names one.
pub fn built(
    build: &mut Command,
    wanted: impl Fn(&serde_json::Value) -> Option<PathBuf>,
) -> Result<Option<PathBuf>> {
    let shown = show(build);
    eprintln!("$ {shown}");
    build.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let output = build.output().context("cannot start cargo")?;
    ensure!(output.status.success(), "`{shown}` failed");
    let messages = output.stdout.split(|&byte| byte == b'\n');
    Ok(messages
        .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
        .filter_map(|message| wanted(&message))
        .next_back())
}

/// Chromium's path, if it is there.
pub fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];
    std::env::split_paths(&path)
        .flat_map(|dir| names.map(|name| dir.join(name)))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_builds_as_a_shell_does() {
        // Tests run below cargo as tasks do.
        assert!(std::env::var_os("CARGO_PKG_NAME").is_some());
        let command = cargo();
        let removed: Vec<_> = command.get_envs().filter(|(_, value)| value.is_none()).collect();
        for name in ["CARGO_PKG_NAME", "CARGO_PKG_VERSION_MAJOR", "CARGO_MANIFEST_DIR"] {
            assert!(removed.iter().any(|(removed, _)| *removed == name), "{name} of {removed:?}");
        }
        assert!(command.get_envs().all(|(name, _)| name != "PATH"));
    }
}
