//! Man pages and completions of shells, made from a program's command line.

use std::{fs, io::Write, path::Path};

use anyhow::Context;
use clap::Command;
use clap_complete::{Generator, Shell};
use clap_mangen::Man;

/// The shells for which a package has completions.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Fish, Shell::Zsh];

/// Writes the completions of a shell.
///
/// # Errors
///
/// When they cannot be written.
pub fn completions(
    mut command: Command,
    shell: Shell,
    output: &mut dyn Write,
) -> anyhow::Result<()> {
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut text);
    output
        .write_all(&text)
        .context("cannot write to the output")
}

/// Writes a man page for each command that is shown, and the completions of each shell, into folders
/// below this one: `man` and `completions`.
///
/// # Errors
///
/// When a file cannot be written.
pub fn write(command: Command, folder: &Path) -> anyhow::Result<()> {
    let (man, completed) = (folder.join("man"), folder.join("completions"));
    for folder in [&man, &completed] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut command = command.disable_help_subcommand(true);
    command.build();
    pages(&command, &man)?;
    for shell in SHELLS {
        let path = completed.join(shell.file_name(command.get_name()));
        let mut file =
            fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        completions(command.clone(), shell, &mut file)?;
    }
    Ok(())
}

/// Writes the page of a command, and of those below it.
fn pages(command: &Command, folder: &Path) -> anyhow::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let path = folder.join(format!("{name}.1"));
    let write = || -> std::io::Result<()> {
        let mut page = Vec::new();
        Man::new(command.clone()).render(&mut page)?;
        fs::write(&path, page)
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    let shown = command
        .get_subcommands()
        .filter(|below| !below.is_hide_set());
    shown.into_iter().try_for_each(|below| pages(below, folder))
}
