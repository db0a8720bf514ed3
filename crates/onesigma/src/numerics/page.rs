//! One self-contained HTML page of a report: markup, style, script and data in one file, which
//! loads nothing.

use onesigma_train::{Error, Result};

use super::report::Report;

/// Down to the end of the page's header; the report of `cargo xtask report` begins with it too.
const HEAD: &str = include_str!("page/head.html");
const MARKUP: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/style.css");

/// Parts of the script, in order; they share one scope.
const SCRIPTS: &[&str] = &[
    include_str!("page/data.js"),
    include_str!("page/heat.js"),
    include_str!("page/histogram.js"),
    include_str!("page/scatter.js"),
    include_str!("page/table.js"),
    include_str!("page/main.js"),
];

/// The page.
///
/// # Errors
/// [`Error::Setting`] if the report has no form in JSON, which does not happen.
pub fn page(report: &Report) -> Result<String> {
    let data = serde_json::to_string(report).map_err(|error| Error::Setting {
        name: "report",
        given: error.to_string(),
        expected: "one that JSON can hold".into(),
    })?;
    let title: Vec<&str> = report.models.iter().map(|model| &model.name[..]).collect();
    let heading = escape(&title.join(", "));
    Ok(MARKUP
        .replace("{{head}}", HEAD)
        .replace("{{title}}", &format!("Numerics: {heading}"))
        .replace("{{skip}}", "#table-title")
        .replace("{{skip_words}}", "Skip to the table")
        .replace("{{brand}}", "numerics")
        .replace("{{heading}}", &heading)
        .replace("{{style}}", STYLE)
        .replace("{{script}}", &SCRIPTS.concat())
        // Last, so that nothing in the data is taken for a place to fill.
        .replace("{{data}}", &embed(&data)))
}

/// JSON that can stand in a script element: no `<`, so neither `</script>` nor `<!--`.
fn embed(json: &str) -> String {
    json.replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

/// Text that can stand between tags.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_whole_and_loads_nothing() {
        let mut report = Report::new(&[onesigma_format::Format::E4M3], Vec::new());
        report.producer = "a </script><!-- {{style}} \"name\"".into();
        let page = page(&report).expect("JSON");
        for hole in ["{{head}}", "{{title}}", "{{skip", "{{heading}}", "{{script}}", "{{data}}"] {
            assert!(!page.contains(hole), "{hole}");
        }
        // What was text stays text: the two scripts of the page end, no other does.
        assert_eq!(page.matches("</script>").count(), 2);
        assert_eq!(page.matches("<!--").count(), 0);
        for address in ["http://", "https://", "src=", "@import", "url("] {
            let found = page.match_indices(address).map(|(at, _)| at);
            let names: Vec<_> = found.map(|at| &page[at..(at + 40).min(page.len())]).collect();
            // Names of languages, and parts of the page itself.
            let own =
                |text: &str| text.starts_with("http://www.w3.org/") || text.starts_with("url(#");
            let outside: Vec<_> = names.iter().filter(|text| !own(text)).collect();
            assert!(outside.is_empty(), "{outside:?}");
        }
    }
}
