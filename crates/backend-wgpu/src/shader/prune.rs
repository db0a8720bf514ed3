//! Leaves out what a shader does not use, so that drivers compile little and people read less.

use std::collections::HashMap;

/// A declaration at the top level, with the comment before it.
struct Item<'a> {
    text: &'a str,
    /// The name it declares; `None` for what always stays.
    name: Option<&'a str>,
}

/// The text without functions and private variables that nothing calls for.
pub(crate) fn prune(source: &str) -> String {
    let items = items(source);
    let by_name: HashMap<&str, usize> =
        items.iter().enumerate().filter_map(|(at, item)| Some((item.name?, at))).collect();
    let mut needed: Vec<bool> = items.iter().map(|item| item.name.is_none()).collect();
    let mut open: Vec<usize> = (0..items.len()).filter(|&at| needed[at]).collect();
    while let Some(at) = open.pop() {
        for word in words(items[at].text) {
            if let Some(&other) = by_name.get(word)
                && !std::mem::replace(&mut needed[other], true)
            {
                open.push(other);
            }
        }
    }
    items.iter().zip(needed).filter(|(_, needed)| *needed).map(|(item, _)| item.text).collect()
}

/// Identifiers of code, comments left out.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    code.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_'))
}

fn items(source: &str) -> Vec<Item<'_>> {
    let mut items = Vec::new();
    let (mut start, mut end, mut name, mut is_open) = (0, 0, None, false);
    for line in source.split_inclusive('\n') {
        end += line.len();
        let text = line.trim_end();
        if !is_open {
            if text.is_empty() || text.starts_with("//") || text.starts_with("@compute") {
                continue;
            }
            name = declared(text);
            is_open = text.ends_with(['{', '(']);
        } else if text == "}" || text == ");" {
            is_open = false;
        }
        if !is_open {
            items.push(Item { text: &source[start..end], name });
            start = end;
        }
    }
    if start < end {
        items.push(Item { text: &source[start..end], name: None });
    }
    items
}

/// The name that a line declares, if it can be left out.
fn declared(line: &str) -> Option<&str> {
    let rest = ["fn ", "var<private> ", "var<workgroup> "]
        .iter()
        .find_map(|start| line.strip_prefix(start))?;
    let name = rest.split(['(', ':']).next()?;
    (name != "main").then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_main_does_not_reach_goes() {
        let source = "var<private> a: u32 = 1u;\nvar<private> b: u32;\n// Of c.\nfn c() -> u32 {\n    return a;\n}\n\
                      fn d() { }\n@compute @workgroup_size(1)\nfn main() {\n    let x = c(); // d\n}\n";
        let pruned = prune(source);
        assert!(pruned.contains("// Of c.\nfn c()") && pruned.contains("> a:"), "{pruned}");
        assert!(!pruned.contains("fn d") && !pruned.contains("> b:"), "{pruned}");
    }
}
