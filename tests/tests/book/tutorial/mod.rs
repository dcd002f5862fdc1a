//! `docs/tutorial.md`, done as it stands there: two real nodes, every command as it is typed, in order, and what the page shows
//! held against what comes.
//!
//! Each machine has a home folder of its own, and a network of its own where this process is root; else both are this machine, and
//! the ports that the page names are replaced by those that the nodes chose. `WRITE_DOCS=1` writes what a newcomer saw to
//! `docs/tutorial-log.md`. Skips with a printed reason where llama.cpp and the model are not installed.

mod machine;
mod pattern;
mod script;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use qmt_tests::fleet::built;
use qmt_tests::lab::Lab;

use crate::page::{Page, hold, root};
use machine::Machine;
use pattern::Pattern;
use script::{Step, steps};

/// How long a look at a state is repeated until it is what the page shows: a person looks again too.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(300);
/// Commands that change nothing, and so may be typed again.
const LOOKS: &[&str] = &[
    "qmt-cli status",
    "qmt-cli nodes",
    "qmt-cli models",
    "qmt-cli agents",
    "qmt-cli invites",
    "qmt-cli routes",
    "qmt-cli ping",
    "qmt-cli session list",
    "qmt-cli session show",
];

#[test]
fn the_tutorial_is_done_as_it_is_written() {
    let installed = match Installed::find() {
        Ok(installed) => installed,
        Err(reason) => {
            println!("skipped: {reason}");
            return;
        }
    };
    let began = Instant::now();
    let folder = tempfile::tempdir().unwrap();
    let mut lab = Lab::new().map_err(|why| println!("both machines are this one: {why}")).ok();
    let lan = lab.as_mut().map(Lab::lan);
    let mut machines: BTreeMap<String, Machine> = BTreeMap::new();
    for name in ["desktop", "laptop"] {
        let host = lab.as_mut().zip(lan.as_ref()).map(|(lab, lan)| lab.host(lan));
        let machine = Machine::new(&folder.path().join(name), &installed.programs, host);
        machines.insert(name.to_owned(), machine);
    }
    installed.give_to(machines["desktop"].home());

    let page = Page::open("docs/tutorial.md");
    let steps = steps(&page);
    assert!(steps.len() > 25, "the page has lost its steps: {}", steps.len());
    let mut reader = Reader { seen: BTreeMap::new(), log: String::new() };
    for step in &steps {
        let machine =
            machines.get_mut(&step.machine).unwrap_or_else(|| panic!("no machine {}", step.machine));
        reader.does(step, machine);
    }
    drop(machines);
    println!("{} commands in {:.0} s", steps.len(), began.elapsed().as_secs_f64());
    if std::env::var_os("WRITE_DOCS").is_some() {
        hold("docs/tutorial-log.md", &reader.whole(steps.len(), began.elapsed()));
    }
}

/// A newcomer who types what the page says.
struct Reader {
    /// What the words in capitals stood for.
    seen: BTreeMap<String, String>,
    log: String,
}

impl Reader {
    fn does(&mut self, step: &Step, machine: &mut Machine) {
        let pattern = Pattern::new(&step.shown);
        let command = self.filled_in(&step.command);
        let began = Instant::now();
        let (said, found) = if step.stays {
            machine.leave_running(&command, PATIENCE, |said| pattern.begins(said))
        } else {
            self.typed(step, machine, &command, &pattern)
        };
        let took = began.elapsed();
        let Some(found) = found else {
            panic!(
                "docs/tutorial.md:{}: at the {}, `{command}` says after {took:?}\n{said}\nand the page shows\n{}\n\n{}",
                step.line,
                step.machine,
                step.shown.join("\n"),
                machine.log()
            );
        };
        self.seen.extend(found);
        let _ = writeln!(self.log, "\n{:.2} s\n```console {}\n$ {command}", took.as_secs_f64(), step.machine);
        for line in said.lines().filter(|line| !line.trim().is_empty()) {
            let _ = writeln!(self.log, "{line}");
        }
        self.log.push_str("```\n");
    }

    /// Types a command, again and again where it only looks.
    fn typed(
        &self,
        step: &Step,
        machine: &Machine,
        command: &str,
        pattern: &Pattern,
    ) -> (String, Option<BTreeMap<String, String>>) {
        let end = Instant::now() + PATIENCE;
        let may_repeat = LOOKS.iter().any(|look| command.starts_with(look));
        loop {
            let (is_done, said) = machine.run(command);
            // A page that shows an error means it.
            let as_told = is_done != step.shown.first().is_some_and(|line| line.starts_with("error:"));
            let found = pattern.fits(&said).filter(|_| as_told);
            if found.is_some() || !may_repeat || Instant::now() > end {
                return (said, found);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// With what the words in capitals stand for.
    fn filled_in(&self, command: &str) -> String {
        self.seen.iter().fold(command.to_owned(), |command, (word, value)| command.replace(word, value))
    }

    fn whole(&self, steps: usize, took: Duration) -> String {
        let mut text = format!(
            "<!-- Written by the test that does the tutorial: WRITE_DOCS=1 cargo nextest run --release --workspace --test book -->\n\
             # What a newcomer saw\n\n\
             One run of the [tutorial](tutorial.md), command by command: {steps} commands in {:.0} s, on a machine that did other work\n\
             beside it. Above each command stands how long it took until it showed what the page shows. Tokens are cut.\n",
            took.as_secs_f64()
        );
        let mut log = self.log.clone();
        for value in self.seen.values().filter(|value| value.len() > 80) {
            log = log.replace(value.as_str(), &format!("{}…", &value[..24]));
        }
        text.push_str(&log);
        text
    }
}

/// What has to be there.
struct Installed {
    /// Folder of our programs.
    programs: PathBuf,
    /// Folder of llama-server.
    llama: PathBuf,
    model: PathBuf,
}

impl Installed {
    fn find() -> Result<Self, String> {
        let folder = |name: &str| {
            let program = built(name).map_err(|why| format!("{why:#}"))?;
            Ok::<_, String>(program.parent().expect("a folder").to_owned())
        };
        let programs = folder("qmt-node")?;
        folder("qmt-cli")?;
        for program in ["script", "curl", "timeout"] {
            let found = Command::new(program).arg("--version").output();
            found.map_err(|_| format!("{program} is not installed"))?;
        }
        let asked = Command::new(root().join("scripts/setup")).arg("--paths").output();
        let asked = asked.map_err(|why| format!("scripts/setup does not run: {why}"))?;
        let told = String::from_utf8_lossy(&asked.stdout);
        match told.lines().collect::<Vec<_>>()[..] {
            [llama, model] if asked.status.success() => {
                Ok(Self { programs, llama: llama.into(), model: model.into() })
            }
            _ => Err("llama.cpp and the model are not installed; run scripts/setup".to_owned()),
        }
    }

    /// As `scripts/setup` leaves a machine: llama.cpp in `~/.qmt/runtime`, the model in `~/.models`.
    fn give_to(&self, home: &Path) {
        let (models, own) = (home.join(".models"), home.join(".qmt"));
        for folder in [&models, &own] {
            std::fs::DirBuilder::new().mode(0o700).create(folder).unwrap();
        }
        symlink(&self.model, models.join(self.model.file_name().expect("a file"))).unwrap();
        let runtime = self.llama.ancestors().nth(2).expect("runtime/BUILD/bin");
        symlink(runtime, own.join("runtime")).unwrap();
    }
}
