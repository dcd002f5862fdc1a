//! `service`: has this machine run the node by itself, from boot or login on, under systemd or launchd.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::Serialize;
use tokio::process::Command;

use crate::args::{ServiceCommand, ServiceInstall};
use crate::doctor::find_program;
use crate::failure::Failure;
use crate::screen::Screen;

const LABEL: &str = "mesh.qmt.node";
const UNIT: &str = "qmt-node.service";

/// What was done, with `--json`.
#[derive(Debug, Serialize)]
struct Done {
    /// The file of the service.
    file: PathBuf,
    /// What it says; of `install` alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// Whether the system was told.
    told: bool,
}

/// Which program of the system runs services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manager {
    SystemdUser,
    Systemd,
    LaunchdUser,
    Launchd,
}

impl Manager {
    fn of(system: bool) -> Self {
        match (cfg!(target_os = "macos"), system) {
            (false, false) => Self::SystemdUser,
            (false, true) => Self::Systemd,
            (true, false) => Self::LaunchdUser,
            (true, true) => Self::Launchd,
        }
    }

    fn file(self, user_home: &Path) -> PathBuf {
        match self {
            Self::SystemdUser => user_home.join(".config/systemd/user").join(UNIT),
            Self::Systemd => Path::new("/etc/systemd/system").join(UNIT),
            Self::LaunchdUser => user_home.join("Library/LaunchAgents").join(format!("{LABEL}.plist")),
            Self::Launchd => Path::new("/Library/LaunchDaemons").join(format!("{LABEL}.plist")),
        }
    }

    /// The commands that make the service known and start it, or end it and forget it.
    fn commands(self, file: &Path, installs: bool) -> Vec<Vec<String>> {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<String>>();
        let file = file.display().to_string();
        match (self, installs) {
            (Self::SystemdUser, true) => {
                vec![words("systemctl --user daemon-reload"), words("systemctl --user enable --now qmt-node")]
            }
            (Self::SystemdUser, false) => vec![words("systemctl --user disable --now qmt-node")],
            (Self::Systemd, true) => {
                vec![words("systemctl daemon-reload"), words("systemctl enable --now qmt-node")]
            }
            (Self::Systemd, false) => vec![words("systemctl disable --now qmt-node")],
            (_, true) => vec![vec!["launchctl".to_owned(), "load".to_owned(), "-w".to_owned(), file]],
            (_, false) => vec![vec!["launchctl".to_owned(), "unload".to_owned(), "-w".to_owned(), file]],
        }
    }

    fn text(self, unit: &Unit<'_>) -> String {
        match self {
            Self::SystemdUser => systemd(unit, false),
            Self::Systemd => systemd(unit, true),
            Self::LaunchdUser | Self::Launchd => launchd(unit),
        }
    }
}

/// What the service runs.
struct Unit<'a> {
    program: &'a Path,
    home: &'a Path,
    models: &'a Path,
    user: Option<&'a str>,
    flags: &'a [String],
}

pub(crate) async fn service(home: &Path, screen: &Screen, what: ServiceCommand) -> Result<(), Failure> {
    match what {
        ServiceCommand::Install(args) => install(home, screen, args).await,
        ServiceCommand::Uninstall { system } => uninstall(screen, system).await,
    }
}

async fn install(home: &Path, screen: &Screen, args: ServiceInstall) -> Result<(), Failure> {
    let manager = Manager::of(args.system);
    if args.system && args.user.is_none() && !args.print {
        return Err(Failure::usage(
            "a service of the system needs --user NAME: a node should not run as root",
        ));
    }
    let user_home = user_home()?;
    let program = find_program().ok_or_else(|| {
        Failure::new("missing", "qmt-node is neither beside qmt-cli nor on PATH")
            .with_mend("put qmt-node into a folder that PATH names")
    })?;
    let program = fs::canonicalize(&program).map_err(|error| failed("read", &program, &error))?;
    let home = std::path::absolute(home).map_err(|error| failed("read", home, &error))?;
    let unit = Unit {
        program: &program,
        home: &home,
        models: &user_home.join(".models"),
        user: args.user.as_deref(),
        flags: &args.flags,
    };
    let text = manager.text(&unit);
    if args.print {
        return screen.print(&text);
    }
    let file = manager.file(&user_home);
    put(&file, &text)?;
    let told = !args.no_start;
    if told {
        for command in manager.commands(&file, true) {
            run(&command).await?;
        }
    }
    let done = Done { file, text: Some(text), told };
    screen.show(&done, |done| format!("{}\n", done.file.display()))?;
    screen.note(&if told {
        "the node runs now, and from the next login or boot on by itself; `qmt-cli status` shows it"
            .to_owned()
    } else {
        let commands =
            manager.commands(&done.file, true).iter().map(|words| words.join(" ")).collect::<Vec<_>>();
        format!("written and not started: `{}`", commands.join(" && "))
    });
    if told && manager == Manager::SystemdUser {
        screen.note("so that it runs without a login too: `loginctl enable-linger`");
    }
    Ok(())
}

async fn uninstall(screen: &Screen, system: bool) -> Result<(), Failure> {
    let manager = Manager::of(system);
    let file = manager.file(&user_home()?);
    if !file.exists() {
        return Err(Failure::new("missing", format!("there is no service at {}", file.display())));
    }
    for command in manager.commands(&file, false) {
        // One that does not run any more is to be taken away all the same.
        if let Err(failure) = run(&command).await {
            screen.note(failure.message());
        }
    }
    fs::remove_file(&file).map_err(|error| failed("remove", &file, &error))?;
    screen.show(&Done { file, text: None, told: true }, |done| {
        format!("{} is gone; the node's files are kept\n", done.file.display())
    })
}

/// Whole or not at all.
fn put(file: &Path, text: &str) -> Result<(), Failure> {
    let written = (|| {
        let folder = file.parent().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        fs::create_dir_all(folder)?;
        let new = file.with_extension("new");
        fs::write(&new, text)?;
        fs::rename(new, file)
    })();
    written.map_err(|error| failed("write", file, &error))
}

fn failed(what: &str, file: &Path, error: &io::Error) -> Failure {
    Failure::new("service", format!("cannot {what} {}: {error}", file.display()))
}

async fn run(command: &[String]) -> Result<(), Failure> {
    let (program, arguments) = command.split_first().ok_or_else(|| Failure::new("service", "no command"))?;
    let typed = command.join(" ");
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().await;
    let output =
        output.map_err(|error| Failure::new("service", format!("`{typed}` does not run: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Failure::new("service", format!("`{typed}` failed: {said}"))
        .with_mend("mend that, then type it again: the file is written"))
}

fn user_home() -> Result<PathBuf, Failure> {
    std::env::var_os("HOME")
        .map(PathBuf::from)
        .filter(|home| home.is_absolute())
        .ok_or_else(|| Failure::usage("HOME is not set"))
}

/// A unit for systemd. A system's own is shut in further: a user's manager may not do that.
fn systemd(unit: &Unit<'_>, system: bool) -> String {
    let command: Vec<String> = std::iter::once(unit.program.display().to_string())
        .chain(unit.flags.iter().cloned())
        .map(|word| quoted(&word))
        .collect();
    let (home, models) = (unit.home.display(), unit.models.display());
    let mut text = format!(
        "# Written by `qmt-cli service install`.\n\
         [Unit]\n\
         Description=QMT mesh node\n\
         After=network-online.target\n\
         Wants=network-online.target\n\
         \n\
         [Service]\n\
         ExecStart={}\n\
         Environment={}\n\
         Restart=on-failure\n\
         RestartSec=2\n\
         # The node ends its children itself, in order.\n\
         KillMode=mixed\n\
         TimeoutStopSec=60\n\
         LimitNOFILE=65536\n\
         UMask=0077\n\
         NoNewPrivileges=yes\n\
         LockPersonality=yes\n\
         RestrictSUIDSGID=yes\n\
         RestrictRealtime=yes\n\
         SystemCallArchitectures=native\n",
        command.join(" "),
        quoted(&format!("QMT_HOME={home}")),
    );
    if system {
        if let Some(user) = unit.user {
            text.push_str(&format!("User={user}\n"));
        }
        text.push_str(&format!(
            "ProtectSystem=strict\n\
             ReadWritePaths={} -{}\n\
             PrivateTmp=yes\n\
             ProtectClock=yes\n\
             ProtectControlGroups=yes\n\
             ProtectHostname=yes\n\
             ProtectKernelLogs=yes\n\
             ProtectKernelModules=yes\n\
             ProtectKernelTunables=yes\n\
             RestrictNamespaces=yes\n\
             CapabilityBoundingSet=\n\
             RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK\n",
            quoted(&home.to_string()),
            quoted(&models.to_string()),
        ));
    }
    text.push_str(&format!(
        "\n[Install]\nWantedBy={}\n",
        if system { "multi-user.target" } else { "default.target" }
    ));
    text
}

/// A word for systemd: percent signs and backslashes mean something there, and dollar signs in a command.
fn quoted(word: &str) -> String {
    let escaped = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    if escaped == word && !word.contains([' ', '\t', '\'', ';', '#']) {
        escaped
    } else {
        format!("\"{escaped}\"")
    }
}

fn launchd(unit: &Unit<'_>) -> String {
    let arguments: String = std::iter::once(unit.program.display().to_string())
        .chain(unit.flags.iter().cloned())
        .map(|word| format!("    <string>{}</string>\n", xml(&word)))
        .collect();
    let user = unit
        .user
        .map(|user| format!("  <key>UserName</key>\n  <string>{}</string>\n", xml(user)))
        .unwrap_or_default();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n\
         <plist version=\"1.0\">\n\
         <dict>\n\
         \x20 <key>Label</key>\n\
         \x20 <string>{LABEL}</string>\n\
         \x20 <key>ProgramArguments</key>\n\
         \x20 <array>\n{arguments}\x20 </array>\n\
         \x20 <key>EnvironmentVariables</key>\n\
         \x20 <dict>\n\
         \x20   <key>QMT_HOME</key>\n\
         \x20   <string>{}</string>\n\
         \x20 </dict>\n{user}\
         \x20 <key>RunAtLoad</key>\n\
         \x20 <true/>\n\
         \x20 <key>KeepAlive</key>\n\
         \x20 <dict>\n\
         \x20   <key>SuccessfulExit</key>\n\
         \x20   <false/>\n\
         \x20 </dict>\n\
         \x20 <key>Umask</key>\n\
         \x20 <integer>63</integer>\n\
         \x20 <key>SoftResourceLimits</key>\n\
         \x20 <dict>\n\
         \x20   <key>NumberOfFiles</key>\n\
         \x20   <integer>10240</integer>\n\
         \x20 </dict>\n\
         \x20 <key>StandardErrorPath</key>\n\
         \x20 <string>{}</string>\n\
         </dict>\n\
         </plist>\n",
        xml(&unit.home.display().to_string()),
        xml(&unit.home.join("logs/node.log").display().to_string()),
    )
}

fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit<'a>(flags: &'a [String], user: Option<&'a str>) -> Unit<'a> {
        Unit {
            program: Path::new("/opt/my tools/qmt-node"),
            home: Path::new("/home/ann/.qmt"),
            models: Path::new("/home/ann/.models"),
            user,
            flags,
        }
    }

    #[test]
    fn a_unit_runs_the_node_as_it_was_asked_to_and_no_more() {
        let flags = ["--console".to_owned(), "--model=50% $x".to_owned()];
        let own = systemd(&unit(&flags, None), false);
        assert!(
            own.contains("ExecStart=\"/opt/my tools/qmt-node\" --console \"--model=50%% $$x\"\n"),
            "{own}"
        );
        assert!(own.contains("Environment=QMT_HOME=/home/ann/.qmt\n") && own.contains("NoNewPrivileges=yes"));
        assert!(own.contains("WantedBy=default.target") && !own.contains("ProtectSystem"));
        let system = systemd(&unit(&[], Some("ann")), true);
        for line in [
            "User=ann",
            "ProtectSystem=strict",
            "ReadWritePaths=/home/ann/.qmt -/home/ann/.models",
            "CapabilityBoundingSet=",
            "WantedBy=multi-user.target",
        ] {
            assert!(system.lines().any(|found| found == line), "{line} is missing in {system}");
        }
    }

    #[test]
    fn a_plist_is_well_formed_whatever_stands_in_it() {
        let flags = ["--node-name=a<b&c".to_owned()];
        let text = launchd(&unit(&flags, None));
        assert!(
            text.contains("<string>--node-name=a&lt;b&amp;c</string>")
                && text.contains("<string>/opt/my tools/qmt-node</string>"),
            "{text}"
        );
        for tag in ["dict", "array", "plist"] {
            assert_eq!(
                text.matches(&format!("<{tag}")).count(),
                text.matches(&format!("</{tag}>")).count(),
                "{tag}"
            );
        }
    }

    /// Runs a program of the system over a file; none where it is not installed.
    fn checked(program: &str, arguments: &[&str], file: &Path) -> Option<String> {
        let mut command = std::process::Command::new(program);
        // systemd's reader of a user's units wants such a folder.
        command.env("XDG_RUNTIME_DIR", file.parent().expect("a folder"));
        let ran = command.args(arguments).arg(file).output();
        let Ok(output) = ran else {
            println!("skipped: {program} is not installed");
            return None;
        };
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{program} refuses {}: {said}", file.display());
        Some(said)
    }

    #[test]
    fn systemd_takes_both_units() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = std::env::current_exe().expect("this test");
        let flags = ["--console".to_owned(), "--node-name=a b".to_owned()];
        for (is_system, user, manager) in [(false, None, "--user"), (true, Some("root"), "--system")] {
            let unit =
                Unit { program: &program, home: folder.path(), models: folder.path(), user, flags: &flags };
            let file = folder.path().join(UNIT);
            fs::write(&file, systemd(&unit, is_system)).expect("writes");
            let Some(said) = checked("systemd-analyze", &["verify", manager, "--man=no"], &file) else {
                return;
            };
            assert!(!said.contains(UNIT), "a setting is not understood: {said}");
        }
    }

    #[test]
    fn a_reader_of_property_lists_finds_what_was_meant() {
        let folder = tempfile::tempdir().expect("a folder");
        let flags = ["--node-name=a<b&c".to_owned()];
        let file = folder.path().join("mesh.qmt.node.plist");
        fs::write(&file, launchd(&unit(&flags, Some("ann")))).expect("writes");
        let read = "import json, plistlib, sys; print(json.dumps(plistlib.load(open(sys.argv[1], 'rb'))))";
        let Some(said) = checked("python3", &["-c", read], &file) else { return };
        let list: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!(list["Label"], LABEL);
        assert_eq!(
            list["ProgramArguments"],
            serde_json::json!(["/opt/my tools/qmt-node", "--node-name=a<b&c"])
        );
        assert_eq!(list["EnvironmentVariables"]["QMT_HOME"], "/home/ann/.qmt");
        assert_eq!((&list["UserName"], &list["RunAtLoad"]), (&"ann".into(), &true.into()));
        assert_eq!((&list["KeepAlive"]["SuccessfulExit"], &list["Umask"]), (&false.into(), &0o077.into()));
    }

    #[test]
    fn a_file_is_written_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a/b.service");
        put(&file, "text").expect("writes");
        assert_eq!(fs::read_to_string(&file).expect("reads"), "text");
        assert_eq!(fs::read_dir(file.parent().expect("a folder")).expect("lists").count(), 1);
    }
}
