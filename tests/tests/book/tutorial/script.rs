//! The page as a list of commands.

use crate::page::Page;

/// One command of the page and what it shows below it.
#[derive(Debug)]
pub(crate) struct Step {
    /// Its place in the page.
    pub(crate) line: usize,
    pub(crate) machine: String,
    /// It is left running in a terminal of its own.
    pub(crate) stays: bool,
    pub(crate) command: String,
    pub(crate) shown: Vec<String>,
}

/// Blocks that are marked `console MACHINE`, or `console MACHINE stays` for what is left running.
pub(crate) fn steps(page: &Page) -> Vec<Step> {
    let mut steps = Vec::new();
    for block in page.blocks() {
        let marks: Vec<&str> = block.info.split_whitespace().collect();
        let (machine, stays) = match marks[..] {
            ["console", machine] => (machine, false),
            ["console", machine, "stays"] => (machine, true),
            _ => continue,
        };
        let before = steps.len();
        for (index, line) in block.lines.iter().enumerate() {
            if let Some(command) = line.strip_prefix("$ ") {
                steps.push(Step {
                    line: block.line + index + 1,
                    machine: machine.to_owned(),
                    stays,
                    command: command.to_owned(),
                    shown: Vec::new(),
                });
                continue;
            }
            let step = steps[before..].last_mut().expect("a block begins with a command");
            match line.strip_prefix("> ").or((line == ">").then_some("")) {
                // A shell's own mark of a command that goes on.
                Some(more) if step.shown.is_empty() => {
                    step.command.push('\n');
                    step.command.push_str(more);
                }
                _ if line.trim().is_empty() => {}
                _ => step.shown.push(line.clone()),
            }
        }
    }
    steps
}

#[test]
fn a_page_becomes_its_commands() {
    let text = "\
```sh
not this
```
```console desktop
$ cat >x <<END
> one
>
> END
$ echo a
a
…
```
```console laptop stays
$ node
```
";
    let page = Page { path: "x.md".into(), text: text.to_owned() };
    let steps = steps(&page);
    let told: Vec<_> = steps
        .iter()
        .map(|step| (step.line, step.machine.as_str(), step.stays, step.command.as_str(), step.shown.len()))
        .collect();
    assert_eq!(
        told,
        [
            (5, "desktop", false, "cat >x <<END\none\n\nEND", 0),
            (9, "desktop", false, "echo a", 2),
            (14, "laptop", true, "node", 0)
        ]
    );
}
