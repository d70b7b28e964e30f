//! The documentation keeps up with the code: every reason and alert has its runbook, and every link leads somewhere.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail like tests"
)]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use common::{EVERYTHING, object, render};
use titan_chart_tests::repository;

fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|it| it == extension) {
            found.push(path);
        }
    }
}

fn runbooks() -> String {
    let mut pages = Vec::new();
    files(&repository().join("docs/runbooks"), "md", &mut pages);
    pages.sort();
    pages
        .iter()
        .map(|page| std::fs::read_to_string(page).unwrap())
        .collect()
}

/// Reasons of conditions in a source file: the string that follows one of these, before its unit tests.
fn reasons(source: &str) -> BTreeSet<String> {
    const BEFORE: [&str; 6] = [
        "Step::failed(",
        "Step::waiting(",
        "Step::unknown(",
        "invalid(",
        "reason: ",
        "ConditionType::Ready,",
    ];
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    let mut found = BTreeSet::new();
    for marker in BEFORE {
        for (at, _) in code.match_indices(marker) {
            let rest = code[at + marker.len()..].trim_start();
            let literals: Vec<&str> = rest.splitn(4, '"').collect();
            let candidates = match literals[..] {
                // writer.condition(ConditionType::Ready, "True", "Serving", ..): the reason is the second.
                ["", "True" | "False" | "Unknown", between, tail] if between.trim() == "," => {
                    tail.split('"').next()
                }
                ["", "True" | "False" | "Unknown", ..] => None,
                ["", literal, ..] => Some(literal),
                _ => None,
            };
            found.extend(
                candidates
                    .filter(|reason| is_camel_case(reason))
                    .map(str::to_owned),
            );
        }
    }
    found
}

fn is_camel_case(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_uppercase())
        && text.len() > 3
        && text.chars().all(|c| c.is_ascii_alphanumeric())
}

#[test]
fn every_reason_has_a_runbook() {
    let mut sources = Vec::new();
    for folder in ["operator/src", "operator/planner/src"] {
        files(&repository().join(folder), "rs", &mut sources);
    }
    let mut all = BTreeSet::new();
    for source in sources {
        all.extend(reasons(&std::fs::read_to_string(source).unwrap()));
    }
    for known in [
        "RangeOverlaps",
        "DependencyCycle",
        "NamespaceNotOurs",
        "Serving",
        "ImagePullFailed",
        "Unrouting",
    ] {
        assert!(
            all.contains(known),
            "the search for reasons misses {known}: {all:?}"
        );
    }
    for store in ["Postgres", "Redis", "Kafka"] {
        all.extend(
            ["Unreachable", "LoginRefused", "Refused", "Invalid"]
                .map(|what| format!("{store}{what}")),
        );
    }
    let runbooks = runbooks();
    let missing: Vec<&String> = all
        .iter()
        .filter(|reason| !runbooks.contains(&format!("`{reason}`")))
        .collect();
    assert!(missing.is_empty(), "add to docs/runbooks: {missing:?}");
}

#[test]
fn every_alert_has_a_runbook_and_metrics_that_exist() {
    let objects = render(&EVERYTHING);
    let mut sources = Vec::new();
    for folder in ["operator/src", "cell-router/src", "cell-services/kit/src"] {
        files(&repository().join(folder), "rs", &mut sources);
    }
    let code: String = sources
        .iter()
        .map(|source| std::fs::read_to_string(source).unwrap())
        .collect();
    let index = std::fs::read_to_string(repository().join("docs/runbooks/README.md")).unwrap();
    let rules = &object(&objects, "PrometheusRule", "titan")["spec"]["groups"][0]["rules"];
    for rule in rules.as_array().unwrap() {
        let name = rule["alert"].as_str().unwrap();
        let url = rule["annotations"]["runbook_url"].as_str().unwrap();
        assert_eq!(url, format!("docs/runbooks/{name}.md"));
        assert!(repository().join(url).is_file(), "there is no {url}");
        assert!(
            index.contains(&format!("({name}.md)")),
            "{name} is not in the index of the runbooks"
        );
        let metrics = rule["expr"]
            .as_str()
            .unwrap()
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let mut seen = 0;
        for metric in
            metrics.filter(|word| word.starts_with("titan_") || word.starts_with("cell_router_"))
        {
            // The router writes its names in two parts, or with their labels; the services' registry puts `titan_` in front.
            let short = metric
                .trim_start_matches("cell_router_")
                .trim_start_matches("titan_");
            let exported = [
                format!("\"{metric}\""),
                format!("\"{short}\""),
                format!("\"{metric}{{"),
            ];
            assert!(
                exported.iter().any(|name| code.contains(name)),
                "{name}: nothing exports {metric}"
            );
            seen += 1;
        }
        assert!(seen > 0, "{name} looks at no metric of ours");
    }
}

/// The anchors that headings of a page get, as GitHub makes them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let text = line.trim_start_matches('#').trim().to_lowercase();
            text.chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    let root = repository();
    let mut pages = Vec::new();
    files(&root.join("docs"), "md", &mut pages);
    for page in ["README.md", "CONTRIBUTING.md", "e2e/README.md"] {
        pages.push(root.join(page));
    }
    let mut broken = Vec::new();
    for page in &pages {
        let text = std::fs::read_to_string(page).unwrap();
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap();
            if target.contains("://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() {
                page.clone()
            } else {
                page.parent().unwrap().join(file)
            };
            let found = match std::fs::read_to_string(&path) {
                Ok(other) => anchor.is_empty() || anchors(&other).contains(anchor),
                Err(_) => path.is_dir() && anchor.is_empty(),
            };
            if !found {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(
        broken.is_empty(),
        "links that lead nowhere:\n{}",
        broken.join("\n")
    );
}
