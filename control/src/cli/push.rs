//! Push: policy documents into a folder that sidecars watch, good ones only.

use std::{io::Write, path::PathBuf, time::Duration};

use clap::Args;
use remora::config::catalogue::Files;
use remora_certs::cli as ca;

use super::error::Error;

/// Check policy documents and write them into a folder that sidecars watch
///
/// The checks are those of a sidecar: where it would refuse one document, nothing is written.
/// All files change by one atomic swap. Files that are not in --policy any more are removed.
#[derive(Args)]
pub(super) struct Push {
    /// The documents: a folder of *.yaml, or one file
    #[arg(long, value_name = "FOLDER")]
    policy: PathBuf,
    /// The folder that sidecars watch, made when absent
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
    /// The namespace of those sidecars, in which documents are that name none; without it,
    /// each document must name one, and all are checked for sidecars of every namespace
    #[arg(long, value_name = "NS")]
    namespace: Option<String>,
}

pub(super) fn run(args: &Push, now: Duration, out: &mut dyn Write) -> Result<(), Error> {
    let files = Files::read(&args.policy);
    let warnings = files.check(args.namespace.as_deref());
    let warnings = warnings.map_err(|it| Error::Policy(it.to_string()))?;
    let texts = files.texts();
    if texts.is_empty() {
        let hint = "hint: to have none at all, leave a file with a comment in it";
        return Err(Error::Policy(format!("{}: no *.yaml in it\n{hint}", args.policy.display())));
    }
    warnings.iter().try_for_each(|it| writeln!(out, "warning: {it}"))?;
    let changes = files.push_to(&args.to, now).map_err(ca::Error::from)?;
    let to = args.to.display();
    if changes.is_empty() {
        return Ok(writeln!(out, "nothing to do: `{to}` has the same documents")?);
    }
    writeln!(out, "wrote {} file(s) into `{to}`", texts.len())?;
    Ok(changes.iter().try_for_each(|(change, name)| writeln!(out, "  {change:8} {name}"))?)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use tempfile::TempDir;

    use super::*;

    const STRICT: &str = "apiVersion: remora.dev/v1alpha1\nkind: WorkloadPolicy\n\
                          metadata: {name: all}\nspec: {mtls: {mode: strict}}\n";

    #[test]
    fn what_changes_is_said_and_a_second_time_nothing() {
        let dir = tempfile::tempdir().unwrap();
        put(&dir, &[("a.yaml", STRICT), ("b.yaml", "# nothing\n")]);
        assert_eq!(
            push(&dir, Some("shop")).unwrap(),
            "wrote 2 file(s) into `TO`\n  added    a.yaml\n  added    b.yaml\n"
        );
        assert_eq!(
            push(&dir, Some("shop")).unwrap(),
            "nothing to do: `TO` has the same documents\n"
        );
        fs::remove_file(dir.path().join("from/b.yaml")).unwrap();
        put(&dir, &[("a.yaml", "# none\n"), ("c.yaml", "")]);
        assert_eq!(
            push(&dir, Some("shop")).unwrap(),
            "wrote 2 file(s) into `TO`\n  changed  a.yaml\n  added    c.yaml\n  removed  b.yaml\n"
        );
    }

    #[test]
    fn bad_documents_change_nothing_and_say_why_in_the_words_of_a_sidecar() {
        let dir = tempfile::tempdir().unwrap();
        put(&dir, &[("a.yaml", STRICT)]);
        push(&dir, Some("shop")).unwrap();
        put(&dir, &[("b.yaml", "kind: Nothing\n")]);
        let error = push(&dir, Some("shop")).unwrap_err();
        assert_eq!(error.tell(&mut std::io::sink()), super::super::error::EX_CONFIG);
        let error = error.to_string().replace(&dir.path().display().to_string(), "DIR");
        assert!(error.contains("\nDIR/from/b.yaml:1:7: unknown kind `Nothing`\nhint: "), "{error}");
        assert_eq!(Files::read(&dir.path().join("to")).names().collect::<Vec<_>>(), ["a.yaml"]);
    }

    #[test]
    fn a_document_names_its_namespace_unless_the_command_does() {
        let dir = tempfile::tempdir().unwrap();
        put(&dir, &[("a.yaml", STRICT)]);
        let error = push(&dir, None).unwrap_err().to_string();
        assert!(error.contains("WorkloadPolicy `all` names no namespace"), "{error}");
        put(&dir, &[("a.yaml", &STRICT.replace("all", "all, namespace: shop"))]);
        push(&dir, None).unwrap();
    }

    #[test]
    fn an_empty_folder_is_a_mistake_and_so_is_one_that_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        for expected in ["cannot be read", "no *.yaml in it"] {
            let error = push(&dir, Some("shop")).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            fs::create_dir_all(dir.path().join("from")).unwrap();
        }
        assert!(!dir.path().join("to").exists());
    }

    #[test]
    fn files_of_somebody_else_are_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        put(&dir, &[("a.yaml", STRICT)]);
        fs::create_dir(dir.path().join("to")).unwrap();
        fs::write(dir.path().join("to/own.yaml"), "# mine\n").unwrap();
        let error = push(&dir, Some("shop")).unwrap_err().to_string();
        assert!(error.contains("own.yaml` is a file of its own"), "{error}");
        assert_eq!(fs::read_dir(dir.path().join("to")).unwrap().count(), 1);
    }

    fn put(dir: &TempDir, files: &[(&str, &str)]) {
        let from = dir.path().join("from");
        fs::create_dir_all(&from).unwrap();
        for (name, text) in files {
            fs::write(from.join(name), text).unwrap();
        }
    }

    fn push(dir: &TempDir, namespace: Option<&str>) -> Result<String, Error> {
        let at = |name: &str| Path::join(dir.path(), name);
        let namespace = namespace.map(str::to_owned);
        let args = Push { policy: at("from"), to: at("to"), namespace };
        let mut out = Vec::new();
        run(&args, Duration::from_secs(1), &mut out)?;
        let to = at("to").display().to_string();
        Ok(String::from_utf8(out).unwrap().replace(&to, "TO"))
    }
}
