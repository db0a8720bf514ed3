//! The page from made-up results, its structure, and its script in a real browser.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::*;
use crate::bench::record::tests::record;
use crate::process::chromium;

/// A folder with two records, lines from another machine, and a peer.
fn results(folder: &Path) {
    for (date, times) in [
        ("2026-01-01T00:00:00Z", [100.0, 101.0, 102.0]),
        ("2026-01-02T00:00:00Z", [80.0, 81.0, 82.0]),
    ] {
        let mut record = record(date, &times);
        for width in [128, 256] {
            let mut layer = record.cases[0].clone();
            layer.suite = "layer".into();
            layer.group = format!("linear layer {width}");
            layer.width = Some(width);
            record.cases.push(layer);
        }
        record.keep(&folder.join("bench")).expect("room");
    }
    let step = r#"{"ms": 59.0, "hidden": 2048, "layers": 8, "seq": 1024, "batch": 16, "#;
    let lines = [
        format!(
            r#"{step}"device": "GPU X, libtorch 2", "recipe": "unit-fp8", "backend": "cuda", "planned_gib": 15.4}}"#
        ),
        format!(
            r#"{step}"device": "GPU X", "peer": "py<torch>", "config": "bf16", "peak_gib": 17.0}}"#
        )
        .replace("59.0", "118.0"),
        r#"{"kernel": "cast", "of_copy": 0.7}"#.to_owned(),
    ];
    fs::create_dir_all(folder.join("gpu")).expect("room");
    fs::write(folder.join("gpu/step.jsonl"), lines.join("\n")).expect("room");
    let product = |m: usize, tflops: f64| {
        format!(r#"{{"formats": ["F16", "F16"], "sizes": [{m}, 64, 64], "tflops": {tflops}}}"#)
    };
    let rows = [
        product(64, 2.0),
        product(64, 3.0),
        product(32, 1.0),
        r#"{"name": "sum", "of_copy": 0.9}"#.into(),
    ];
    let file = format!(r#"{{"device": "GPU Y", "rows": [{}]}}"#, rows.join(", "));
    fs::write(folder.join("gpu/kernels.json"), file).expect("room");
    processor(folder);
    let steps = r#"{"command": "kernels gpt; burn-peer --d-model 8 --layers 2 --seq 4 --batch 2",
        "device": "one H100 80 GB HBM3 (driver 5.1), headless Vulkan",
        "beside_burn_ms": {"note": "one call", "burn f32": 20.0, "unit-fp8": 5.0},
        "rows": [{"recipe": "unit-fp8", "ms": 4.0}]}"#;
    fs::create_dir_all(folder.join("wgpu")).expect("room");
    fs::write(folder.join("wgpu/gpt_step.json"), steps).expect("room");
}

/// What programs that take turns on a processor leave.
fn processor(folder: &Path) {
    let write = |name: &str, rest: &str| {
        let machine = r#""machine": {"processor": "CPU Z", "processors": 2}"#;
        fs::write(folder.join(name), format!("{{{machine}, {rest}}}")).expect("room");
    };
    let contender = |name: &str, ms: f64| {
        format!(r#"{{"name": "{name}", "step_ms_median": {ms}, "peak_resident_bytes": 1e8}}"#)
    };
    write(
        "peers_cpu.json",
        &format!(
            r#""results": [{{"sizes": "--d-model 8 --layers 1 --heads 1 --seq 4 --batch 2",
                "threads": 2, "contenders": [{}, {}]}}]"#,
            contender("onesigma unit-fp8", 30.0),
            contender("burn", 120.0)
        ),
    );
    write(
        "gemm_cpu.json",
        r#""runs": [{"threads": 1, "cases": [{"case": "square 8", "operands": "f32", "m": 8,
            "k": 8, "n": 8, "gflops": 90.0, "of_fma": 0.9}]}]"#,
    );
    let row = |width: u64, gflops: f64| {
        format!(
            r#"{{"series": "width", "width": {width}, "layers": 1, "seq": 4, "threads": 2,
                "gflops": {gflops}, "step_ms_median": 3.0}}"#
        )
    };
    write("scaling_cpu.json", &format!(r#""rows": [{}, {}]"#, row(8, 50.0), row(16, 60.0)));
}

fn made(name: &str) -> (PathBuf, Sources, Vec<Chart>) {
    let folder =
        std::env::temp_dir().join(format!("onesigma-report-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    results(&folder);
    let sources = Sources::read(&folder).expect("results");
    let charts = charts::all(&sources);
    (folder, sources, charts)
}

#[test]
fn every_chart_is_drawn_from_results_of_several_machines() {
    let (folder, sources, charts) = made("charts");
    fs::remove_dir_all(folder).expect("its own folder");
    let names: Vec<_> = charts.iter().map(|chart| chart.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "peers",
            "throughput-amd-epyc",
            "throughput-cpu-z",
            "throughput-nvidia-h100-80gb-hbm3",
            "throughput-gpu-x",
            "peers-cpu-z",
            "peers-nvidia-h100-80gb-hbm3",
            "peers-gpu-x",
            "limit-amd-epyc",
            "limit-gpu-y",
            "limit-gpu-x",
            "products-cpu-z",
            "products-gpu-y",
            "scaling",
            "growth-width",
            "memory-amd-epyc",
            "memory-cpu-z",
            "memory-gpu-x",
            "history"
        ]
    );
    let pairs = charts::peers::pairs(&sources);
    let found = pairs.iter().flat_map(|pairs| {
        pairs.peers.iter().map(|(peer, ratios)| {
            (pairs.own[0].name.as_str(), charts::peers::peer_name(peer), ratios[0])
        })
    });
    assert_eq!(
        found.collect::<Vec<_>>(),
        [
            ("unit-fp8 (cpu)", "burn", Some(0.25)),
            // The step of another call is not held against burn's.
            ("unit-fp8 (wgpu)", "burn f32", Some(0.25)),
            ("unit-fp8 (cuda)", "py<torch> bf16", Some(0.5)),
        ]
    );
    // Of several tiles of one product the fastest counts.
    let rates: Vec<f64> = sources.products.iter().map(|product| product.rate).collect();
    assert_eq!(rates, [90e9, 3e12, 1e12]);
    assert_eq!(sources.shares.len(), 2);
    for chart in &charts {
        let svg = chart.svg.file();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{}: {svg}", chart.name);
    }
    let html = page::html(&sources, &charts);
    assert_eq!(html.matches("<svg").count(), charts.len());
    assert_eq!(html.matches("class=\"risk sortable\"").count(), page::TABLES);
    assert!(!html.contains("{{") && html.contains("py&lt;torch&gt;"));
    for word in ["src=", "@import", "url(http", "<link"] {
        assert!(!html.contains(word), "the page loads something: {word}");
    }
    let chapter = book::chapter(&sources, &charts);
    assert!(chapter.contains("| py<torch> bf16 | 0.50 |"), "{chapter}");
}

#[test]
fn the_readme_has_every_contender_of_a_run_and_changes_with_the_results_alone() {
    let (folder, sources, charts) = made("readme");
    let old = "# Title\n\n<!-- results: cargo xtask report --docs -->\nold\n<!-- end of results -->\n\nEnd.\n";
    let new = book::readme(old, &sources).expect("marks");
    for row in [
        "| **unit-fp8 (cpu)** | 30.0 | 95.4 MiB |",
        "| py<torch> bf16 | 118.0 | 17.0 GiB |",
        "step.jsonl",
    ] {
        assert!(new.contains(row), "{row} in {new}");
    }
    assert!(new.starts_with("# Title\n") && new.ends_with("\n\nEnd.\n") && !new.contains("old"));
    assert_eq!(book::readme(&new, &sources).expect("marks"), new);
    assert!(book::readme("# Title\n", &sources).is_err());
    // A second report writes the same bytes.
    let again = Sources::read(&folder).expect("results");
    let drawn = charts::all(&again);
    assert!(charts.iter().zip(&drawn).all(|(a, b)| a.svg.file() == b.svg.file()));
    assert_eq!(book::chapter(&sources, &charts), book::chapter(&again, &drawn));
    fs::remove_dir_all(folder).expect("its own folder");
}

/// The document after its scripts.
fn document(browser: &Path, folder: &Path, page: &str, hash: &str, dark: bool) -> String {
    let path = folder.join("page.html");
    fs::write(&path, page).expect("room");
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        .args(["--virtual-time-budget=4000", "--dump-dom"])
        .arg(format!("--blink-settings=preferredColorScheme={}", u8::from(!dark)))
        .arg(format!("--user-data-dir={}", folder.join("profile").display()))
        .arg(format!("file://{}#{hash}", path.display()))
        .stdin(Stdio::null())
        .output()
        .expect("the browser starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let rest = text.split_once(from).unwrap_or_else(|| panic!("no {from}")).1;
    rest.split_once(to).unwrap_or_else(|| panic!("no {to} after {from}")).0
}

#[test]
fn the_page_sorts_filters_and_has_two_themes() {
    let Some(browser) = chromium() else {
        println!("skipped: no Chromium in PATH, so the page is not opened");
        return;
    };
    let (folder, sources, charts) = made("page");
    let html = page::html(&sources, &charts);
    let script = "document.querySelectorAll('#steps th button')[3].click();\
                  document.getElementById('filter').value = 'unit-fp8 gpt'; document.getElementById('filter').dispatchEvent(new Event('input'));\
                  document.body.dataset.background = getComputedStyle(document.body).backgroundColor;";
    let page = html.replacen("</body>", &format!("<script>{script}</script></body>"), 1);
    let light = document(&browser, &folder, &page, "", false);
    let dark = document(&browser, &folder, &page, "", true);
    let chosen = document(&browser, &folder, &page, "theme=dark", false);
    fs::remove_dir_all(folder).expect("its own folder");
    // Sorted by time, longest first.
    let table = between(&light, "id=\"steps\"", "</table>");
    let times: Vec<f64> = table
        .split("<tr")
        .skip(2)
        .map(|row| between(row, "data-value=\"", "\"").parse().expect("a number"))
        .collect();
    assert_eq!(times.len(), sources.steps.len());
    assert!(times.is_sorted_by(|a, b| a >= b), "{times:?}");
    assert!(table.contains("aria-sort=\"descending\""));
    // The peer's row does not fit the filter.
    let hidden = table.split("<tr").filter(|row| row.contains("hidden=\"\"")).count();
    assert_eq!(hidden, sources.steps.iter().filter(|step| step.is_peer).count());
    let background = |page: &str| between(page, "data-background=\"", "\"").to_owned();
    assert_ne!(background(&light), background(&dark));
    assert_eq!(background(&dark), background(&chosen));
}
