//! The parameters of a clustered machine, as the cluster's configuration names them. Pacemaker passes each one in the
//! environment variable `OCF_RESKEY_` followed by its name.

use crate::name::MachineName;
use program::input::MAX_SECONDS;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// The standard, the provider and the name of the resource agent in the cluster's configuration.
pub const AGENT: [&str; 3] = ["ocf", "microvm", "MicroVM"];

/// The parameter with the machine's name.
pub const NAME: &str = "name";
/// The parameter with the store path of the runner.
pub const RUNNER: &str = "runner";
/// The parameter with the directory of the state directories.
pub const STATE_DIR: &str = "state_dir";
/// The parameter with the binary cache.
pub const CACHE: &str = "cache";
/// The parameter with the time for the guest to shut down.
pub const DRAIN_TIMEOUT: &str = "drain_timeout";
/// The parameter with how the machine moves to another node.
pub const MIGRATE: &str = "migrate";
/// The parameter with the shared directory of suspended machines.
pub const MIGRATE_DIR: &str = "migrate_dir";
/// The parameter with the command that reaches the target of a live migration.
pub const MIGRATE_COMMAND: &str = "migrate_command";

/// The default of [`STATE_DIR`].
pub const DEFAULT_STATE_DIR: &str = "/var/lib/microvms";
/// The default of [`MIGRATE_COMMAND`]. `NODE` is replaced with the name of the target.
pub const DEFAULT_MIGRATE_COMMAND: &str = "ssh -o BatchMode=yes root@NODE microvm ocf receive";
/// The word of [`MIGRATE_COMMAND`] that is replaced with the name of the target.
pub const NODE: &str = "NODE";

/// The type of a parameter's value: `content type` in the resource agent API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// Any text.
    String,
    /// A time in seconds.
    Seconds,
    /// One of the modes of [`MigrationMode`].
    Mode,
}

/// A parameter of the resource agent.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// Whether its value must differ between all resources of this agent.
    pub is_unique: bool,
    /// Whether it must be given.
    pub is_required: bool,
    /// The type of its value.
    pub content: ContentType,
    /// Its default, if there is one.
    pub default: Option<&'static str>,
    /// What it is, in a few words.
    pub summary: &'static str,
    /// What it does.
    pub description: &'static str,
}

/// All parameters.
pub const PARAMETERS: [Parameter; 8] = [
    Parameter {
        name: NAME,
        is_unique: true,
        is_required: true,
        content: ContentType::String,
        default: None,
        summary: "name of the machine",
        description: "The machine's name. Its state directory on each node is named after it.",
    },
    Parameter {
        name: RUNNER,
        is_unique: false,
        is_required: true,
        content: ContentType::String,
        default: None,
        summary: "store path of the runner",
        description: "The store path of the machine's runner. A node that does not have it copies it from the cache.",
    },
    Parameter {
        name: STATE_DIR,
        is_unique: false,
        is_required: false,
        content: ContentType::String,
        default: Some(DEFAULT_STATE_DIR),
        summary: "directory of the state directories",
        description: "The directory that contains the machines' state directories, the same on all nodes.",
    },
    Parameter {
        name: CACHE,
        is_unique: false,
        is_required: false,
        content: ContentType::String,
        default: None,
        summary: "binary cache",
        description: "The URL of the Nix store from which a node copies a runner that it does not have. The node \
                      verifies the signatures.",
    },
    Parameter {
        name: DRAIN_TIMEOUT,
        is_unique: false,
        is_required: false,
        content: ContentType::Seconds,
        default: None,
        summary: "time for the guest to shut down",
        description: "How many seconds the guest may take to shut down before its hypervisor is ended. At most, and by \
                      default, two thirds of the timeout of the stop operation.",
    },
    Parameter {
        name: MIGRATE,
        is_unique: false,
        is_required: false,
        content: ContentType::Mode,
        default: Some("cold"),
        summary: "how the machine moves: live, suspend or cold",
        description: "How the machine moves to another node. live: it continues there without a pause. suspend: it is \
                      saved in migrate_dir, and resumed from there. cold: it is shut down and booted; the resource must \
                      not have allow-migrate then.",
    },
    Parameter {
        name: MIGRATE_DIR,
        is_unique: false,
        is_required: false,
        content: ContentType::String,
        default: None,
        summary: "shared directory of suspended machines",
        description: "A directory that all nodes share, in which a machine is saved while it moves. Required if migrate \
                      is suspend. It contains the guest's memory, so only root may have access to it.",
    },
    Parameter {
        name: MIGRATE_COMMAND,
        is_unique: false,
        is_required: false,
        content: ContentType::String,
        default: Some(DEFAULT_MIGRATE_COMMAND),
        summary: "command that reaches the target of a live migration",
        description: "The command that runs `microvm ocf receive` on the target of a live migration. The word NODE, or \
                      NODE after an @, is replaced with the name of the target. The machine's memory goes through its \
                      standard input. It is not run by a shell.",
    },
];

/// How a machine moves to another node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MigrationMode {
    /// It continues on the target without a pause.
    Live,
    /// It is suspended, and resumed on the target.
    Suspend,
    /// It is shut down, and booted on the target.
    #[default]
    Cold,
}

impl MigrationMode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Live, Self::Suspend, Self::Cold];

    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Suspend => "suspend",
            Self::Cold => "cold",
        }
    }
}

/// A parameter that is missing or has a bad value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("parameter {name}: {problem}")]
pub struct BadParameter {
    /// The parameter.
    pub name: &'static str,
    /// What is wrong with it, and what it must be.
    pub problem: String,
}

/// The parameters of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// The machine.
    pub name: MachineName,
    /// Its runner.
    pub runner: PathBuf,
    /// The directory that contains the state directories.
    pub state_dir: PathBuf,
    /// The store to copy the runner from.
    pub cache: Option<String>,
    /// The time for the guest to shut down.
    pub drain_timeout: Option<Duration>,
    /// How it moves to another node.
    pub migrate: MigrationMode,
    /// The shared directory of suspended machines.
    pub migrate_dir: Option<PathBuf>,
    /// The command that reaches the target of a live migration, as words.
    pub migrate_command: Vec<String>,
}

impl Parameters {
    /// Checks the parameters. `value` returns the value of a parameter; an empty value counts as missing.
    ///
    /// # Errors
    /// Returns all problems; at least one.
    pub fn parse(value: impl Fn(&str) -> Option<String>) -> Result<Self, Vec<BadParameter>> {
        let mut problems = Vec::new();
        let mut note = |name: &'static str, problem: String| problems.push(BadParameter { name, problem });
        let value = |name: &str| value(name).filter(|text| !text.is_empty());
        let name = match value(NAME) {
            None => {
                note(NAME, "it is missing; set it to the machine's name".to_owned());
                None
            }
            Some(text) => MachineName::new(&text).map_err(|error| note(NAME, error.to_string())).ok(),
        };
        let mut path = |name: &'static str, default: Option<&str>| -> Option<PathBuf> {
            let path = PathBuf::from(value(name).or(default.map(str::to_owned))?);
            if !path.is_absolute() {
                note(name, format!("`{}` must be an absolute path", path.display()));
            }
            Some(path)
        };
        let runner = path(RUNNER, None);
        let state_dir = path(STATE_DIR, Some(DEFAULT_STATE_DIR));
        let migrate_dir = path(MIGRATE_DIR, None);
        if runner.is_none() {
            note(RUNNER, "it is missing; set it to the store path of the machine's runner".to_owned());
        }
        let drain_timeout = value(DRAIN_TIMEOUT).and_then(|text| match text.parse() {
            Ok(seconds) if seconds <= MAX_SECONDS => Some(Duration::from_secs(seconds)),
            _ => {
                note(DRAIN_TIMEOUT, format!("`{text}` must be a whole number of seconds, at most {MAX_SECONDS}"));
                None
            }
        });
        let migrate = value(MIGRATE).map_or(Some(MigrationMode::default()), |text| {
            let found = MigrationMode::ALL.into_iter().find(|mode| mode.as_str() == text);
            if found.is_none() {
                note(MIGRATE, format!("`{text}` must be live, suspend or cold"));
            }
            found
        });
        if migrate == Some(MigrationMode::Suspend) && migrate_dir.is_none() {
            let problem = "it is missing; with migrate=suspend, set it to a directory that all nodes share";
            note(MIGRATE_DIR, problem.to_owned());
        }
        let command = value(MIGRATE_COMMAND).unwrap_or_else(|| DEFAULT_MIGRATE_COMMAND.to_owned());
        if !names_target(&command) {
            note(MIGRATE_COMMAND, format!("`{command}` has no word NODE or USER@NODE for the target"));
        }
        let migrate_command: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        match (name, runner, state_dir, migrate) {
            (Some(name), Some(runner), Some(state_dir), Some(migrate)) if problems.is_empty() => {
                let cache = value(CACHE);
                Ok(Self { name, runner, state_dir, cache, drain_timeout, migrate, migrate_dir, migrate_command })
            }
            _ => Err(problems),
        }
    }

    /// Returns the path of the program that starts the machine.
    pub fn run_program(&self) -> PathBuf {
        self.runner.join("bin/microvm-run")
    }

    /// Returns the path of the machine's spec in its runner.
    pub fn spec(&self) -> PathBuf {
        self.runner.join("share/microvm/machine.json")
    }

    /// Returns the command that reaches a node.
    pub fn command_for(&self, node: &str) -> Vec<String> {
        let word = |word: &String| match before_node(word) {
            Some(before) => format!("{before}{node}"),
            None => word.clone(),
        };
        self.migrate_command.iter().map(word).collect()
    }

    /// Returns where the machine is saved while it moves, if it moves in that way.
    pub fn transfer_directory(&self) -> Option<PathBuf> {
        Some(self.migrate_dir.as_deref()?.join(format!("{}.suspended", self.name)))
    }
}

/// Whether a command names the target of a migration.
pub fn names_target(command: &str) -> bool {
    command.split_whitespace().any(|word| before_node(word).is_some())
}

/// Returns what comes before the word that is replaced with the target, which is nothing or `USER@`.
fn before_node(word: &str) -> Option<&str> {
    word.strip_suffix(NODE).filter(|before| before.is_empty() || before.ends_with('@'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn parse(values: &[(&str, &str)]) -> Result<Parameters, Vec<BadParameter>> {
        Parameters::parse(|name| values.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn all_bad_parameters_are_reported_at_once() {
        let problems = parse(&[
            ("name", "../web"),
            ("runner", "runner"),
            ("drain_timeout", "31536001"),
            ("migrate", "warm"),
            ("state_dir", "machines"),
        ])
        .unwrap_err();
        let names: Vec<_> = problems.iter().map(|problem| problem.name).collect();
        assert_eq!(names, [NAME, RUNNER, STATE_DIR, DRAIN_TIMEOUT, MIGRATE], "{problems:?}");
        let problems = parse(&[("migrate", "suspend")]).unwrap_err();
        let names: Vec<_> = problems.iter().map(|problem| problem.name).collect();
        assert_eq!(names, [NAME, RUNNER, MIGRATE_DIR]);
    }

    #[test]
    fn the_target_replaces_only_whole_words() {
        let given =
            [("name", "web"), ("runner", "/nix/store/x"), ("migrate_command", "ssh -l NODES root@NODE -- NODE")];
        let parameters = parse(&given).unwrap();
        assert_eq!(parameters.command_for("n2"), ["ssh", "-l", "NODES", "root@n2", "--", "n2"]);
        assert_eq!(parameters.state_dir, Path::new(DEFAULT_STATE_DIR));
        assert_eq!((parameters.migrate, parameters.drain_timeout), (MigrationMode::Cold, None));
    }
}
