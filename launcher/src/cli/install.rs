//! `microvm install --user`: a systemd unit of the user for a machine, on hosts without the host module.

use super::machine::failed;
use super::spec_file::{SpecArguments, read};
use super::stop::StopTimeout;
use program::failure::Failure;
use program::output::{message, print};
use program::place::{Directory, Place};
use std::io;
use std::path::{Path, PathBuf};

/// The first line of a unit that this command wrote, and may replace.
const MARK: &str = "# Written by `microvm install --user`, which replaces this file.";
/// The mode of the unit.
const UNIT_MODE: u32 = 0o644;
/// The mode of the directories of units.
const DIRECTORY_MODE: u32 = 0o755;
/// The difference between the time for the guest to shut down, and the time after which systemd kills its hypervisor.
const STOP_MARGIN_SECONDS: u64 = 30;

/// Write a systemd user unit for a machine; root is not required
///
/// The user's service manager then starts the machine. On NixOS, the host module has units for the machines of the
/// host.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Write a user unit; on NixOS, the host module provides the system units
    #[arg(long, required = true)]
    user: bool,
    #[command(flatten)]
    spec: SpecArguments,
    #[command(flatten)]
    stop_timeout: StopTimeout,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let overrides = &arguments.spec.overrides;
    if arguments.spec.spec == Path::new("-") {
        return Err(Failure::usage("a unit needs a spec in a file, not standard input"));
    }
    let spec = read(&arguments.spec.spec, overrides)?;
    super::machine::checked(&spec)?;
    // Not resolved: `result` is a garbage collection root, and the next start uses what it refers to then.
    let spec_path = std::path::absolute(&arguments.spec.spec).map_err(failed)?;
    let mut command = vec![program()?, "run".into(), "--supervise".into()];
    command.extend(["--stop-timeout".to_owned(), arguments.stop_timeout.seconds.to_string(), "--name".to_owned()]);
    command.extend([spec.name.clone(), "--state-dir".to_owned(), overrides.state_directory()?.to_string()]);
    if let Some(hypervisor) = overrides.hypervisor {
        command.extend(["--hypervisor".to_owned(), hypervisor.to_string()]);
    }
    if let Some(accelerator) = overrides.accel {
        let value = serde_json::to_value(accelerator).map_err(failed)?;
        command.extend(["--accel".to_owned(), value.as_str().unwrap_or_default().to_owned()]);
    }
    command.push(text_of(&spec_path)?);
    let directory = units()?;
    Directory::make(&directory, DIRECTORY_MODE, None).map_err(failed)?;
    let name = format!("microvm-{}.service", spec.name);
    let path = directory.join(&name);
    let stop_seconds = arguments.stop_timeout.seconds.saturating_add(STOP_MARGIN_SECONDS);
    write(&path, &unit(&spec.name, &command, &std::env::var("PATH").unwrap_or_default(), stop_seconds))?;
    message(&format!("start it with: systemctl --user daemon-reload && systemctl --user enable --now {name}"));
    message("to start it at boot and keep it after you log out: loginctl enable-linger");
    print(format!("{}\n", path.display()))
}

/// Returns this program. A path in the Nix store could be garbage-collected, so the one in `$PATH` is preferred.
fn program() -> Result<String, Failure> {
    let own = std::env::current_exe().map_err(failed)?;
    let search_path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::env::split_paths(&search_path).map(|directory| directory.join("microvm"));
    let found =
        candidates.filter(|path| path.is_absolute()).find(|path| path.canonicalize().is_ok_and(|path| path == own));
    text_of(&found.unwrap_or(own))
}

fn text_of(path: &Path) -> Result<String, Failure> {
    let problem = || Failure::usage(format!("{}: the paths in a unit must be UTF-8", path.display()));
    path.to_str().map(str::to_owned).ok_or_else(problem)
}

/// Returns the directory of the user's units: systemd.unit(5).
fn units() -> Result<PathBuf, Failure> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let configuration = variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")));
    let configuration = configuration.ok_or_else(|| Failure::usage("neither XDG_CONFIG_HOME nor HOME is set"))?;
    Ok(configuration.join("systemd/user"))
}

/// Writes the unit. A file that this command did not write is never replaced.
fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |source: io::Error| Failure::failed(&source).with_context(&format!("cannot write {}", path.display()));
    let place = Place::nofollow(path).map_err(failed)?;
    if let Some((existing, _)) = place.read().map_err(failed)?
        && !existing.starts_with(MARK.as_bytes())
    {
        return Err(Failure::usage(format!(
            "{} exists, and this command did not write it: move it away",
            path.display()
        )));
    }
    place.replace(text.as_bytes(), UNIT_MODE, None).map_err(failed)
}

fn unit(name: &str, command: &[String], search_path: &str, stop_seconds: u64) -> String {
    let command: Vec<_> = command.iter().map(|word| quoted(word)).collect();
    format!(
        "{MARK}\n\
         [Unit]\n\
         Description=MicroVM {name}\n\
         \n\
         [Service]\n\
         Type=notify\n\
         NotifyAccess=main\n\
         Environment={}\n\
         ExecStart={}\n\
         Restart=on-failure\n\
         RestartSec=5s\n\
         TimeoutStartSec=infinity\n\
         TimeoutStopSec={stop_seconds}\n\
         KillMode=mixed\n\
         \n\
         [Install]\n\
         WantedBy=default.target\n",
        quoted(&format!("PATH={search_path}")).replace("$$", "$"),
        command.join(" ")
    )
}

/// Quotes a word for a unit: systemd.syntax(7), and for `$` systemd.service(5).
fn quoted(word: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "/._-+:@,=".contains(character);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    let mut text = String::from("\"");
    for character in word.chars() {
        match character {
            '"' | '\\' => text.extend(['\\', character]),
            '%' => text.push_str("%%"),
            '$' => text.push_str("$$"),
            '\n' => text.push_str("\\n"),
            _ => text.push(character),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_unit_are_quoted_as_systemd_reads_them() {
        let words = ["/usr/bin/microvm", "/home/me/my vms/web.json", "100%", "a$b", "x\"y\\z", ""].map(quoted);
        let expected =
            ["/usr/bin/microvm", "\"/home/me/my vms/web.json\"", "\"100%%\"", "\"a$$b\"", "\"x\\\"y\\\\z\"", "\"\""];
        assert_eq!(words, expected);
        let text = unit("web", &["/bin/microvm".to_owned(), "a b".to_owned()], "/a$b:/bin", 90);
        assert!(text.contains("\nEnvironment=\"PATH=/a$b:/bin\"\nExecStart=/bin/microvm \"a b\"\n"), "{text}");
    }

    #[test]
    fn a_unit_of_the_user_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("microvm-web.service");
        for second in ["90", "120"] {
            write(&path, &format!("{MARK}\nTimeoutStopSec={second}\n")).unwrap();
        }
        assert!(std::fs::read_to_string(&path).unwrap().contains("120"));
        std::fs::write(&path, "[Service]\n").unwrap();
        assert!(write(&path, MARK).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[Service]\n");
    }
}
