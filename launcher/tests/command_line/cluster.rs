//! `microvm cluster` with Pacemaker's real tools, which work on files without a running cluster. Only what needs a
//! daemon that fails in a certain way is tested with substitutes of its tools.

use crate::{stderr, stdout};
use launcher::cluster::runners::check_with_runners;
use launcher::cluster::simulation::cib;
use launcher::spec::parse::parse_document;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use testing::{find_tool, write_program};

/// A directory with `cluster.json` and runners. The first element of each machine is its name, the second its fields in
/// cluster.json, the third those of its spec.
struct Cluster {
    directory: tempfile::TempDir,
}

impl Cluster {
    /// Hosts with this memory in MiB, and machines.
    fn new(hosts: &[u64], machines: &[(&str, Value, Value)]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut all = serde_json::Map::new();
        for (name, fields, spec) in machines {
            let runner = directory.path().join(name);
            fs::create_dir_all(runner.join("share/microvm")).expect("a directory");
            let mut document = json!({"version": 1, "name": name, "kernel": "/k/bzImage"});
            merge(&mut document, spec);
            fs::write(runner.join("share/microvm/machine.json"), document.to_string()).expect("a spec");
            let mut machine = json!({"runner": runner});
            merge(&mut machine, fields);
            all.insert((*name).to_owned(), machine);
        }
        let node = |(index, memory): (usize, &u64)| {
            let id = index + 1;
            (format!("host{id}"), json!({"id": id, "addresses": [format!("10.0.0.{id}")], "memory": memory}))
        };
        let nodes: serde_json::Map<String, Value> = hosts.iter().enumerate().map(node).collect();
        let targets: Vec<&String> = nodes.keys().collect();
        let document = json!({
            "version": 1, "name": "rack", "machines": all,
            "fencing": {"devices": {"pdu": {"agent": "fence_apc", "targets": targets}}}, "nodes": nodes,
        });
        fs::write(directory.path().join("cluster.json"), document.to_string()).expect("a file");
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs `microvm cluster` in the directory. With `cib.xml` there, the tools work on it.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
        command.arg("cluster").args(arguments).current_dir(self.directory.path());
        self.on_file(&mut command);
        command.output().expect("microvm runs")
    }

    /// Like [`Self::run`], but with programs of this directory before all others.
    fn run_with(&self, programs: &Path, arguments: &[&str]) -> Output {
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
        command.arg("cluster").args(arguments).env("PATH", path).current_dir(self.directory.path());
        self.on_file(&mut command);
        command.output().expect("microvm runs")
    }

    fn on_file(&self, command: &mut Command) {
        if self.path("cib.xml").exists() {
            command.env("CIB_file", self.path("cib.xml"));
        }
    }

    /// Writes `cib.xml`: the cluster after all hosts are up and its machines have started, and after further events.
    fn start(&self, events: &[&str]) -> String {
        let text = fs::read_to_string(self.path("cluster.json")).expect("a file");
        let cluster = check_with_runners(&parse_document(&text).expect("a cluster")).expect("no problems");
        fs::write(self.path("new.xml"), cib(&cluster).and_then(|cib| cib.to_text()).expect("XML")).expect("a file");
        let up: Vec<String> = cluster.nodes.iter().map(|node| format!("--node-up={}", node.name)).collect();
        let up: Vec<&str> = up.iter().map(String::as_str).collect();
        self.simulate("new.xml", &[&up[..], &["--save-output=cib.xml"]].concat());
        self.simulate("cib.xml", events)
    }

    /// Returns what crm_simulate prints.
    fn simulate(&self, file: &str, events: &[&str]) -> String {
        let mut command = Command::new("crm_simulate");
        command.args(["--simulate", "--xml-file", file]).args(events).current_dir(self.directory.path());
        let output = command.output().expect("crm_simulate runs");
        assert!(output.status.success(), "{events:?}: {}{}", stdout(&output), stderr(&output));
        stdout(&output)
    }
}

fn merge(document: &mut Value, fields: &Value) {
    if let (Value::Object(document), Value::Object(fields)) = (document, fields) {
        document.extend(fields.clone());
    }
}

fn plain(name: &'static str) -> (&'static str, Value, Value) {
    (name, json!({}), json!({}))
}

fn assert_refused(output: &Output, code: i32, text: &str) {
    assert_eq!(output.status.code(), Some(code), "{text}: {}{}", stdout(output), stderr(output));
    assert!(stderr(output).contains(text), "{text}: {}", stderr(output));
}

#[test]
fn a_cluster_is_accepted_only_if_every_machine_survives_each_host() {
    if find_tool("crm_simulate").is_none() {
        return;
    }
    let preferring = ("web", json!({"prefer": ["host2"]}), json!({}));
    let output = Cluster::new(&[4096; 3], &[preferring, plain("db")]).run(&["check", "cluster.json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("web: starts on host2, moves cold\n"), "{}", stdout(&output));

    // Two machines fit on the big host, and one of them on each of the small ones.
    let large = |name| (name, json!({}), json!({"mem": 600}));
    let output = Cluster::new(&[1200, 700, 500], &[large("web"), large("db")]).run(&["check", "cluster.json"]);
    assert_refused(
        &output,
        2,
        "when host1 fails, no host can run it: it needs 600 MiB and 1 vCPU; host2 has 100 MiB left; host3 has 500 MiB left",
    );
    assert!(!stderr(&output).contains("when host3"), "{}", stderr(&output));

    let apart = |name, other: [&str; 2]| (name, json!({"apartFrom": other}), json!({}));
    let machines = [apart("a", ["b", "c"]), apart("b", ["a", "c"]), plain("c")];
    let cluster = Cluster::new(&[4096; 3], &machines);
    let output = cluster.run(&["check", "cluster.json", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    let document: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    let hosts: std::collections::BTreeSet<_> =
        document["machines"].as_array().expect("a list").iter().map(|machine| machine["host"].to_string()).collect();
    assert_eq!(hosts.len(), 3, "they start apart: {document}");
    let problems = document["problems"].to_string();
    for host in ["host1", "host2", "host3"] {
        assert!(problems.contains(&format!("when {host} fails, no host can run it")), "{problems}");
    }
    assert_refused(&cluster.run(&["apply", "cluster.json"]), 2, "no host can run it");

    let output = Cluster::new(&[256; 3], &[plain("web")]).run(&["check", "cluster.json"]);
    assert_refused(&output, 2, "machines.web: when all hosts run, no host can run it: it needs 512 MiB");
    assert_eq!(stderr(&output).matches("error:").count(), 1, "reported once: {}", stderr(&output));
}

#[test]
fn a_host_that_fails_or_cannot_stop_a_machine_is_fenced_before_the_machine_starts_elsewhere() {
    if find_tool("crm_simulate").is_none() {
        return;
    }
    let cluster = Cluster::new(&[4096; 3], &[("web", json!({"prefer": ["host2"]}), json!({}))]);
    let of_failed_host = cluster.start(&["--node-fail=host2"]);
    // A stop that fails leaves the host in a state that the next decision ends.
    let failed_stop = ["--op-inject=web_monitor_10000@host2=7", "--op-fail=web_stop_0@host2=1"];
    cluster.start(&[&failed_stop[..], &["--save-output=after.xml"]].concat());
    let of_failed_stop = cluster.simulate("after.xml", &[]);
    for text in [of_failed_host, of_failed_stop] {
        let fenced = line_with(&text, &["Fencing host2"]).unwrap_or_else(|| panic!("not fenced: {text}"));
        let started = line_with(&text, &["web ", "start on host"]).unwrap_or_else(|| panic!("not started: {text}"));
        assert!(fenced < started && line_with(&text, &["web ", "start on host2"]).is_none(), "{text}");
    }
}

/// Pacemaker restarted such a device without end. On busy hosts, which carry out one action at a time, no host was fenced and
/// no machine started any more.
#[test]
fn a_fence_device_that_does_not_answer_is_reported_and_not_restarted() {
    if find_tool("crm_mon").is_none() || find_tool("crm_simulate").is_none() {
        return;
    }
    let cluster = Cluster::new(&[4096; 3], &[plain("web")]);
    let started = cluster.start(&[]);
    let host = started.lines().find_map(|line| line.split_once("microvm__fence__pdu\t(stonith:fence_apc):\t Started "));
    let (_, host) = host.unwrap_or_else(|| panic!("the device is not started: {started}"));
    let status = || stdout(&cluster.run(&["status"]));
    assert!(status().contains("fence devices:\n  pdu  working\n"), "{}", status());
    let monitor = format!("microvm__fence__pdu_monitor_60000@{host}");
    let fails = [format!("--op-inject={monitor}=1"), format!("--op-fail={monitor}=1")];
    let text = cluster.simulate("cib.xml", &[&fails[0], &fails[1], "--save-output=cib.xml"]);
    assert_eq!(line_with(&text, &["microvm__fence__pdu", " stop on "]), None, "{text}");
    assert!(status().contains("fence devices:\n  pdu  not working\n"), "{}", status());
    assert!(status().contains(&format!("failures:\n  microvm__fence__pdu_monitor_60000  on {host}: ")), "{}", status());

    cluster.simulate("cib.xml", &[&format!("--op-inject={monitor}=0"), "--save-output=cib.xml"]);
    assert!(status().contains("fence devices:\n  pdu  working\n"), "{}", status());
    assert!(!status().contains("failures"), "{}", status());
    // The same holds for its start.
    let start = format!("--op-inject=microvm__fence__pdu_start_0@{host}=1");
    let text = cluster.simulate("cib.xml", &[&start]);
    assert_eq!(line_with(&text, &["microvm__fence__pdu", " stop on "]), None, "{text}");
}

/// Returns the number of the first line that contains all words.
fn line_with(text: &str, words: &[&str]) -> Option<usize> {
    text.lines().position(|line| words.iter().all(|word| line.contains(word)))
}

#[test]
fn hosts_are_drained_and_machines_released_and_unknown_names_change_nothing() {
    if find_tool("crm_mon").is_none() || find_tool("crm_simulate").is_none() {
        return;
    }
    let cluster = Cluster::new(&[4096; 3], &[("web", json!({"prefer": ["host2"]}), json!({})), plain("db")]);
    cluster.start(&[]);
    let status = || {
        let output = cluster.run(&["status", "--json"]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        serde_json::from_str::<Value>(&stdout(&output)).expect("JSON")
    };
    let named = |list: &str, name: &str| {
        let document = status();
        let all = document[list].as_array().expect("a list").clone();
        all.into_iter().find(|item| item["name"] == name).unwrap_or_else(|| panic!("{name}: {document}"))
    };
    assert_eq!(named("machines", "web")["nodes"], json!(["host2"]));
    assert!(stdout(&cluster.run(&["status"])).contains("web  running on host2\n"));

    let before = fs::read(cluster.path("cib.xml")).expect("a file");
    for (arguments, code, message) in [
        (&["drain", "host9"][..], 2, "the cluster has no host host9; did you mean host1?"),
        (&["undrain", "elsewhere"], 2, "the cluster has no host elsewhere; it has host1, host2, host3"),
        (&["move", "wbe", "host1"], 2, "the cluster has no machine wbe; did you mean web?"),
        (&["move", "web", "host9"], 2, "the cluster has no host host9"),
        (&["manage", "mail"], 2, "the cluster has no machine mail; it has db, web"),
        (&["unmanage", "microvm__fence__pdu"], 2, "the cluster has no machine"),
        (&["update", "mail", "web"], 2, "the cluster has no machine mail"),
        (&["update", "web", "nothing"], 2, "nothing: No such file"),
        (&["update", "web", "."], 2, "is not a runner on this host"),
        (&["push", "mail", "web"], 2, "the cluster has no machine mail"),
        (&["ack-fence", "host2", "--is-off"], 1, "host2 is online; only a failed host"),
        (&["ack-fence", "host2"], 2, "--is-off"),
    ] {
        assert_refused(&cluster.run(arguments), code, message);
    }
    assert_eq!(fs::read(cluster.path("cib.xml")).expect("a file"), before, "nothing was changed");

    let succeeds = |arguments: &[&str]| {
        let output = cluster.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
    };
    succeeds(&["drain", "host2"]);
    assert_eq!(named("nodes", "host2")["isDrained"], json!(true));
    let text = cluster.simulate("cib.xml", &[]);
    assert!(line_with(&text, &["web ", "start on host"]).is_some(), "the machine leaves: {text}");
    assert_refused(&cluster.run(&["move", "web", "host2"]), 1, "host2 cannot run machines now: it is drained");
    succeeds(&["undrain", "host2"]);
    assert_eq!(named("nodes", "host2")["isDrained"], json!(false));
    succeeds(&["unmanage", "web"]);
    assert_eq!(named("machines", "web")["isManaged"], json!(false));
    assert_refused(&cluster.run(&["move", "web", "host1"]), 1, "first: microvm cluster manage web");
    succeeds(&["apply", "cluster.json"]);
    assert_eq!(named("machines", "web")["isManaged"], json!(false), "applying keeps it");
    succeeds(&["manage", "web"]);
    assert_eq!(named("machines", "web")["isManaged"], json!(true));
    // What somebody has set with Pacemaker's tools is neither overruled nor removed.
    let mut ban = Command::new("crm_resource");
    ban.args(["--ban", "--resource=web", "--node=host3"]).env("CIB_file", cluster.path("cib.xml"));
    assert!(ban.output().expect("crm_resource runs").status.success());
    assert_refused(
        &cluster.run(&["move", "web", "host3"]),
        1,
        "the constraint cli-ban-web-on-host3 keeps web away from host3\nhint: remove it, if it is no longer needed, with: cibadmin --delete",
    );
    succeeds(&["move", "web", "host1"]);
    let text = fs::read_to_string(cluster.path("cib.xml")).expect("a file");
    assert!(text.contains("cli-ban-web-on-host3") && !text.contains("microvm__move"), "{text}");
    succeeds(&["update", "web", "db"]);
    let text = fs::read_to_string(cluster.path("cib.xml")).expect("a file");
    let runner = cluster.path("db").canonicalize().expect("a path");
    assert_eq!(text.matches(&format!("value=\"{}\"", runner.display())).count(), 2, "one parameter changed: {text}");
}

#[test]
fn applying_another_configuration_replaces_machines_and_the_same_one_changes_nothing() {
    if find_tool("cibadmin").is_none() || find_tool("crm_simulate").is_none() {
        return;
    }
    let cluster = Cluster::new(&[4096; 3], &[plain("web"), plain("db")]);
    cluster.start(&[]);
    let apply = || {
        let output = cluster.run(&["apply", "cluster.json"]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stderr(&output)
    };
    assert!(apply().contains("already has this configuration"));
    let text = fs::read_to_string(cluster.path("cluster.json")).expect("a file");
    let mut document: Value = serde_json::from_str(&text).expect("JSON");
    document["machines"].as_object_mut().expect("machines").remove("db");
    document["machines"]["web"]["memory"] = json!(700);
    fs::write(cluster.path("cluster.json"), document.to_string()).expect("a file");
    assert!(apply().contains("the cluster rack is configured"));
    assert!(apply().contains("already has this configuration"));
    let text = fs::read_to_string(cluster.path("cib.xml")).expect("a file");
    assert!(text.contains("value=\"700\"") && !text.contains("microvm__machine__db__start"), "{text}");

    // Somebody else changes the configuration after it was read, twice.
    let tools = cluster.path("tools");
    fs::create_dir(&tools).expect("a directory");
    let difference = find_tool("crm_diff").expect("crm_diff is beside cibadmin");
    let other = "<cluster_property_set id='other'><nvpair id='o' name='other' value=''/></cluster_property_set>";
    let script = format!(
        "#!/bin/sh\necho x >>changes\nif [ $(wc -l <changes) -lt 3 ]; then cibadmin --modify --allow-create --scope=crm_config \\\n\
         --xml-text \"$(echo \"{other}\" | sed \"s/value=''/value='$(wc -l <changes)'/\")\" </dev/null; fi\nexec {} \"$@\"\n",
        difference.display()
    );
    write_program(&tools.join("crm_diff"), &script);
    document["machines"]["web"]["memory"] = json!(800);
    fs::write(cluster.path("cluster.json"), document.to_string()).expect("a file");
    let output = cluster.run_with(&tools, &["apply", "cluster.json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = fs::read_to_string(cluster.path("cib.xml")).expect("a file");
    assert!(
        text.contains("value=\"800\"") && text.contains("name=\"other\" value=\"2\""),
        "both changes are kept: {text}"
    );
}

/// The devices that an earlier release configured had a meta attribute, and those of this release have none.
#[test]
fn applying_to_a_cluster_of_an_earlier_release_was_refused_by_pacemaker() {
    if find_tool("crm_mon").is_none() || find_tool("crm_simulate").is_none() {
        return;
    }
    let cluster = Cluster::new(&[4096; 3], &[plain("web")]);
    cluster.start(&[]);
    let cib = fs::read_to_string(cluster.path("cib.xml")).expect("a file");
    let device = cib.find("<primitive id=\"microvm__fence__pdu\"").expect("the device");
    let (before, after) = cib.split_at(device + cib[device..].find("<operations>").expect("its operations"));
    let id = "microvm__fence__pdu__meta";
    let old = format!(
        "<meta_attributes id=\"{id}\"><nvpair id=\"{id}__failure-timeout\" name=\"failure-timeout\" value=\"120s\"/></meta_attributes>"
    );
    fs::write(cluster.path("cib.xml"), format!("{before}{old}{after}")).expect("a file");
    let priority = ["--resource=microvm__fence__pdu", "--meta", "--set-parameter=priority", "--parameter-value=7"];
    let set = Command::new("crm_resource").args(priority).env("CIB_file", cluster.path("cib.xml")).output();
    assert!(set.as_ref().is_ok_and(|output| output.status.success()), "{set:?}");

    // The hash in the configuration is that of the earlier release.
    let hosts = fs::read_to_string(cluster.path("cluster.json")).expect("a file").replace("4096", "4097");
    fs::write(cluster.path("cluster.json"), hosts).expect("a file");
    let output = cluster.run(&["apply", "cluster.json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let cib = fs::read_to_string(cluster.path("cib.xml")).expect("a file");
    assert!(!cib.contains("name=\"failure-timeout\" value=\"120s\""), "{cib}");
    assert!(cib.contains("name=\"priority\" value=\"7\""), "what the user has set is kept: {cib}");
}

/// The status of a cluster of which this part has no majority, as crm_mon prints it.
const WITHOUT_QUORUM: &str = r#"<pacemaker-result><summary><current_dc present="true" name="host1" with_quorum="false"/></summary>
<nodes><node name="host1" online="true" standby="false" maintenance="false" unclean="false"/>
<node name="host2" online="false" standby="false" maintenance="false" unclean="true"/></nodes>
<resources><resource id="web" resource_agent="ocf:microvm:MicroVM" role="Stopped" managed="true" failed="false"/></resources>
</pacemaker-result>"#;

#[test]
fn a_host_name_with_a_domain_does_not_keep_a_host_from_being_the_coordinator() {
    let cluster = Cluster::new(&[4096; 3], &[plain("web")]);
    let tools = cluster.path("tools");
    fs::create_dir(&tools).expect("a directory");
    let status = WITHOUT_QUORUM.replace("with_quorum=\"false\"", "with_quorum=\"true\"");
    write_program(&tools.join("crm_mon"), &format!("#!/bin/sh\ncat <<'END'\n{status}\nEND\n"));
    write_program(&tools.join("cibadmin"), "#!/bin/sh\necho queried >&2\nexit 1\n");
    let apply = |node: &str| {
        write_program(&tools.join("crm_node"), &format!("#!/bin/sh\n[ \"$*\" = --name ] && {node}\n"));
        cluster.run_with(&tools, &["apply", "--on-coordinator", "cluster.json"])
    };
    // The name of the host that runs this test is another one.
    assert_refused(&apply("echo host1"), 1, "cibadmin failed with exit status: 1: queried");
    let output = apply("echo host1.example.org");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("another host is the coordinator"), "{}", stderr(&output));
    assert_refused(&apply("exit 102"), 1, "the cluster is not running on this host");
}

#[test]
fn a_cluster_that_does_not_run_or_may_not_be_changed_is_reported() {
    let cluster = Cluster::new(&[4096; 3], &[plain("web")]);
    assert_refused(
        &cluster.run(&["check", "nothing.json"]),
        2,
        "cannot read the cluster spec nothing.json: No such file",
    );
    let empty = cluster.path("empty");
    fs::create_dir(&empty).expect("a directory");
    let mut without_tools = Command::new(env!("CARGO_BIN_EXE_microvm"));
    let output = without_tools.args(["cluster", "status"]).env("PATH", &empty).output().expect("microvm runs");
    assert_refused(&output, 1, "crm_mon is not installed; install Pacemaker");

    let tools = cluster.path("tools");
    fs::create_dir(&tools).expect("a directory");
    let record = format!("echo \"$(basename \"$0\") $*\" >>{}\n", cluster.path("calls").display());
    for tool in ["crm_resource", "crm_attribute", "stonith_admin", "cibadmin"] {
        write_program(&tools.join(tool), &format!("#!/bin/sh\n{record}"));
    }
    let with_status = |script: &str| write_program(&tools.join("crm_mon"), &format!("#!/bin/sh\n{script}"));
    for (script, message) in [
        (
            "echo 'crm_mon: Connection to cluster failed: Permission denied' >&2; exit 102",
            "is not allowed to access the cluster",
        ),
        ("exit 4", "is not allowed to access the cluster"),
        ("echo oops >&2; exit 1", "crm_mon failed with exit status: 1: oops"),
        ("echo '<pacemaker-result>'", "the output of crm_mon: invalid XML"),
        (&format!("cat <<'END'\n{WITHOUT_QUORUM}\nEND"), "this part of the cluster has no quorum"),
    ] {
        with_status(script);
        for arguments in [
            &["move", "web", "host1"][..],
            &["drain", "host1"],
            &["undrain", "host1"],
            &["manage", "web"],
            &["unmanage", "web"],
        ] {
            assert_refused(&cluster.run_with(&tools, arguments), 1, message);
        }
    }
    assert!(!cluster.path("calls").exists(), "nothing was changed");
    // A failed host is acknowledged although there is no majority, because that is when it is needed.
    let output = cluster.run_with(&tools, &["ack-fence", "host2", "--is-off"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(cluster.path("calls")).expect("calls"), "stonith_admin --confirm=host2\n");

    fs::remove_file(cluster.path("calls")).expect("a file");
    let with_quorum = WITHOUT_QUORUM.replace("with_quorum=\"false\"", "with_quorum=\"true\"");
    let unmanaged = with_quorum.replace("managed=\"true\"", "managed=\"false\"");
    with_status(&format!("cat <<'END'\n{unmanaged}\nEND"));
    assert_eq!(cluster.run_with(&tools, &["manage", "web"]).status.code(), Some(0));
    let calls = fs::read_to_string(cluster.path("calls")).expect("calls");
    let refreshed_first =
        "crm_resource --refresh --resource=web\ncrm_resource --resource=web --meta --delete-parameter=is-managed\n";
    assert_eq!(calls, refreshed_first, "the cluster must not start the machine while it asks all hosts");

    if find_tool("crm_mon").is_some() {
        assert_refused(&cluster.run(&["status"]), 1, "the cluster is not running on this host");
        assert_refused(&cluster.run(&["drain", "host1"]), 1, "the cluster is not running on this host");
    }
}
