//! Texts in every form, tokenised once, and downloaded.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use flate2::Compression;
use flate2::write::GzEncoder;

mod common;

use common::{Outcome, TINY, command, folder, losses, onesigma, run, text_file};

fn utf8(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn train(data: &Path, out: &Path, more: &[&str]) -> Outcome {
    let mut words = vec!["train", "--data", utf8(data), "--out", utf8(out)];
    words.extend(TINY);
    words.extend(more);
    onesigma(&words)
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text).expect("memory");
    encoder.finish().expect("memory")
}

/// A byte-level `tokenizer.json` as GPT-2's is, with a small vocabulary: 256 letters that stand for
/// bytes, one merge, and the token that ends a text.
fn tokenizer(dir: &Path) -> PathBuf {
    let printable = |byte: &u32| matches!(*byte, 33..=126 | 161..=172 | 174..=255);
    let mut extra = 256;
    let mut vocabulary = serde_json::Map::new();
    for byte in 0u32..256 {
        let letter = if printable(&byte) { byte } else { extra };
        extra += u32::from(!printable(&byte));
        let letter = char::from_u32(letter).expect("a character").to_string();
        vocabulary.insert(letter, byte.into());
    }
    // Together "is": what `squared is` has.
    vocabulary.insert("is".into(), 256.into());
    let level = |kind: &str| serde_json::json!({"type": kind, "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let end = serde_json::json!({
        "id": 257, "content": "<|endoftext|>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true,
    });
    let file = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [end],
        "normalizer": null, "pre_tokenizer": level("ByteLevel"), "post_processor": null,
        "decoder": level("ByteLevel"),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocabulary, "merges": ["i s"],
        },
    });
    let path = dir.join("tokenizer.json");
    fs::write(&path, file.to_string()).expect("room");
    path
}

#[test]
fn compressed_and_plain_text_train_alike() {
    let dir = folder();
    let text = text_file(dir.path());
    // One name, since names are part of a text's identity.
    let packed = dir.path().join("text.txt.gz");
    fs::write(&packed, gzip(&fs::read(&text).expect("the text"))).expect("room");
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    for (data, out) in [(&text, &a), (&packed, &b)] {
        let outcome = train(data, out, &["--quiet"]);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    }
    assert_eq!(losses(&a), losses(&b));
}

#[test]
fn lines_of_json_are_documents_of_a_field() {
    let dir = folder();
    let mut lines = String::new();
    for n in 0..300 {
        lines += &format!("{{\"body\": \"{n} squared is {}.\", \"id\": {n}}}\n", n * n);
    }
    let path = dir.path().join("articles.jsonl.gz");
    fs::write(&path, gzip(lines.as_bytes())).expect("room");
    let info = onesigma(&["data", "info", utf8(&path), "--field", "body"]);
    assert_eq!(info.code, Some(0), "{}", info.stderr);
    for word in ["documents   300", "270 documents", "30 documents", "UTF-8"] {
        assert!(info.stdout.contains(word), "no `{word}` in {}", info.stdout);
    }
    let wrong = onesigma(&["data", "info", utf8(&path)]);
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);
    assert!(
        wrong.stderr.contains("`body`") && wrong.stderr.contains("--field"),
        "{}",
        wrong.stderr
    );
    let outcome = train(&path, &dir.path().join("run"), &["--quiet", "--field", "body"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
}

#[test]
fn text_of_another_encoding_is_told_and_refused_where_characters_are_needed() {
    let dir = folder();
    let text = dir.path().join("latin-1.txt");
    // \u{fc} in Latin-1 is the byte FC, which no UTF-8 has.
    let line = b"gr\xfcn is a colour, and this line has it.\n";
    fs::write(&text, line.repeat(200)).expect("room");
    let outcome = train(&text, &dir.path().join("bytes"), &["--quiet"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let said = |text: &str| text.contains("latin-1.txt") && text.contains("first at byte 2)");
    assert!(
        said(&outcome.stderr) && outcome.stderr.contains("taken as they are"),
        "{}",
        outcome.stderr
    );
    let file = tokenizer(dir.path());
    let more = ["--quiet", "--tokenizer", utf8(&file)];
    let outcome = train(&text, &dir.path().join("pieces"), &more);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    assert!(said(&outcome.stderr) && outcome.stderr.contains("iconv"), "{}", outcome.stderr);
    let info = onesigma(&["data", "info", utf8(&text)]);
    assert!(info.stdout.contains("not all UTF-8"), "{}", info.stdout);
    // 9999 bytes, of which the last 999 are to measure on: the cut is within a character, which is
    // no fault of the text.
    fs::write(&text, format!("a{}", "\u{fc}".repeat(4999))).expect("room");
    let info = onesigma(&["data", "info", utf8(&text)]);
    assert!(info.stdout.contains("encoding    UTF-8"), "{}", info.stdout);
    assert!(!info.stderr.contains("UTF-8"), "{}", info.stderr);
    let outcome = train(&text, &dir.path().join("good"), &more);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
}

#[test]
fn a_text_is_tokenised_once_and_a_damaged_cache_is_made_anew() {
    let dir = folder();
    let (text, tokenizer) = (text_file(dir.path()), tokenizer(dir.path()));
    let cache = dir.path().join("cache");
    let more = ["--tokenizer", utf8(&tokenizer), "--cache", utf8(&cache), "--save-every", "4"];
    let run = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let outcome = train(&text, &out, &[&["-v"], more].concat());
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        (losses(&out), outcome.stderr)
    };
    let (first, said) = run("first", &more);
    assert!(said.contains("tokenised"), "{said}");
    let (second, said) = run("second", &more);
    assert!(!said.contains("tokenised") && !said.contains("anew"), "{said}");
    assert_eq!(first, second);
    // Without a cache the tokens are the same.
    let (uncached, _) = run("uncached", &[&more[..2], &["--cache", "off"]].concat());
    assert_eq!(first, uncached);

    let shard = fs::read_dir(&cache).expect("the folder").next().expect("a cache").expect("it");
    let shard = shard.path().join("training-00000.tokens");
    let mut bytes = fs::read(&shard).expect("tokens");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&shard, bytes).expect("room");
    let (mended, said) = run("mended", &more);
    assert!(said.contains("checksum") && said.contains("anew"), "{said}");
    assert_eq!(first, mended);

    // A run that goes on from the cache goes on exactly.
    let half = dir.path().join("first");
    fs::remove_file(half.join("checkpoints/step-0000000008.safetensors")).expect("its own file");
    let outcome = onesigma(&["train", "--quiet", "--resume", utf8(&half)]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(losses(&half), first);

    let listed = onesigma(&["data", "caches", "--cache", utf8(&cache)]);
    assert!(listed.stdout.contains("vocabulary  258"), "{}", listed.stdout);
    let removed = onesigma(&["data", "caches", "--cache", utf8(&cache), "--remove"]);
    assert!(removed.stdout.contains("removed"), "{}", removed.stdout);
    assert_eq!(fs::read_dir(&cache).expect("the folder").count(), 0);
}

#[test]
fn preparing_says_what_the_tokens_are_and_training_finds_them() {
    let dir = folder();
    let (text, tokenizer) = (text_file(dir.path()), tokenizer(dir.path()));
    let cache = dir.path().join("cache");
    let words = ["data", "prepare", utf8(&text), "--tokenizer", utf8(&tokenizer)];
    let prepared = onesigma(&[&words[..], &["--cache", utf8(&cache)]].concat());
    assert_eq!(prepared.code, Some(0), "{}", prepared.stderr);
    let size = fs::read(&text).expect("the text").len();
    // 600 lines with one "is" each, two parts of one document with a token at the end of each.
    let said = &prepared.stdout;
    let line = said.lines().find(|line| line.contains("tokens ")).expect("tokens");
    let counts: Vec<usize> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let merged = 600 - usize::from(counts.iter().sum::<usize>() != size - 600 + 2);
    assert_eq!(counts.iter().sum::<usize>(), size - merged + 2, "{said}");
    let out = dir.path().join("run");
    let more = ["-v", "--tokenizer", utf8(&tokenizer), "--cache", utf8(&cache)];
    let outcome = train(&text, &out, &more);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("tokenised"), "{}", outcome.stderr);
    let said = onesigma(&["generate", utf8(&out), "--prompt", "12 squared is", "--tokens", "5"]);
    assert!(said.stdout.starts_with("12 squared is"), "{said:?}");
    assert_eq!(
        onesigma(&["data", "prepare", utf8(&text), "--tokenizer", "wordpiece"]).code,
        Some(2)
    );
}

/// A server of one file: it breaks each connection off after `most` bytes of body, and notes the
/// ranges that are asked for.
fn serve(file: Vec<u8>, most: usize, ranges: Arc<Mutex<Vec<String>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}/archive.zip", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            // A client that breaks off is the client's affair.
            let _ = answer(stream, &file, most, &ranges);
        }
    });
    address
}

fn answer(
    mut stream: TcpStream,
    file: &[u8],
    most: usize,
    ranges: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut range = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        let line = line.to_lowercase();
        if let Some(value) = line.strip_prefix("range:") {
            range = value.trim().to_owned();
        }
    }
    ranges.lock().expect("no panic").push(range.clone());
    let start: usize = range
        .strip_prefix("bytes=")
        .and_then(|rest| rest.strip_suffix('-'))
        .map_or(0, |start| start.parse().expect("a number"));
    let body = &file[start.min(file.len())..];
    let (total, last) = (file.len(), file.len() - 1);
    let head = match range.is_empty() {
        true => format!("HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n"),
        false if start >= total => {
            format!("HTTP/1.1 416 No\r\nContent-Range: bytes */{total}\r\nContent-Length: 0\r\n")
        }
        false => format!(
            "HTTP/1.1 206 Partial\r\nContent-Range: bytes {start}-{last}/{total}\r\n\
             Content-Length: {}\r\n",
            body.len()
        ),
    };
    stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())?;
    stream.write_all(&body[..body.len().min(most)])
}

/// The archive's three texts, stored in a zip as the published one has them.
fn archive() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(&mut bytes));
    let options = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Deflated);
    for (name, lines) in [("train", 4000), ("valid", 300), ("test", 200)] {
        zip.start_file(format!("wikitext-103-raw/wiki.{name}.raw"), options).expect("memory");
        for n in 0..lines as u64 {
            writeln!(zip, " = {name} {n} = {}", n * n * 7919 % 10_007).expect("memory");
        }
    }
    zip.finish().expect("memory");
    bytes
}

fn sha256(dir: &Path, bytes: &[u8]) -> String {
    let path = dir.join("digest");
    fs::write(&path, bytes).expect("room");
    onesigma::download::digest(&path).expect("its own file")
}

fn fetch(out: &Path, url: &str, sha256: &str) -> Outcome {
    let words = ["data", "wikitext103", "--out", utf8(out), "--url", url, "--sha256", sha256];
    // A proxy of the machine must not come between.
    run(command(&words).env("NO_PROXY", "*").env_remove("HTTP_PROXY").env_remove("http_proxy"))
}

#[test]
fn a_download_that_breaks_off_goes_on_and_is_checked_and_unpacked() {
    let dir = folder();
    let file = archive();
    let digest = sha256(dir.path(), &file);
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let most = file.len() / 3 + 1;
    let url = serve(file.clone(), most, Arc::clone(&ranges));
    let out = dir.path().join("wikitext");
    let outcome = fetch(&out, &url, &digest);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let asked = ranges.lock().expect("no panic").clone();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert_eq!(asked[0], "");
    assert!(asked[1..].iter().all(|range| range.starts_with("bytes=") && range.ends_with('-')));
    let train = fs::read_to_string(out.join("wiki.train.raw")).expect("the text");
    assert_eq!(train.lines().count(), 4000);
    assert!(train.starts_with(" = train 0 = 0\n"));
    let names: Vec<_> = fs::read_dir(&out).expect("the folder").flatten().collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(outcome.stdout.contains("onesigma train --data"), "{}", outcome.stdout);

    // It is not downloaded twice.
    let again = fetch(&out, &url, &digest);
    assert!(again.stdout.contains("there already"), "{}", again.stdout);
    assert_eq!(ranges.lock().expect("no panic").len(), 3);
}

#[test]
fn a_download_continues_what_an_earlier_process_left() {
    let dir = folder();
    let file = archive();
    let digest = sha256(dir.path(), &file);
    for (left, answers) in [
        (file[..1000].to_vec(), vec!["bytes=1000-"]),
        (file.clone(), vec![&*format!("bytes={}-", file.len()).leak()]),
        // Longer than the file: from the start.
        ([&file[..], b"more"].concat(), vec![&*format!("bytes={}-", file.len() + 4).leak(), ""]),
    ] {
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let url = serve(file.clone(), usize::MAX, Arc::clone(&ranges));
        let out = dir.path().join(left.len().to_string());
        fs::create_dir(&out).expect("room");
        fs::write(out.join("wikitext-103-raw-v1.zip.part"), &left).expect("room");
        let outcome = fetch(&out, &url, &digest);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        assert_eq!(*ranges.lock().expect("no panic"), answers);
        assert!(out.join("wiki.test.raw").is_file());
    }
}

#[test]
fn a_wrong_file_and_no_server_are_told() {
    let dir = folder();
    let out = dir.path().join("wikitext");
    let url = serve(archive(), usize::MAX, Arc::default());
    let outcome = fetch(&out, &url, &"0".repeat(64));
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("SHA-256") && outcome.stderr.contains("removed"),
        "{}",
        outcome.stderr
    );
    assert_eq!(fs::read_dir(&out).expect("the folder").count(), 0);

    let junk = b"no archive at all".to_vec();
    let digest = sha256(dir.path(), &junk);
    let outcome = fetch(&out, &serve(junk, usize::MAX, Arc::default()), &digest);
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("no archive"), "{}", outcome.stderr);

    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("it").port();
    let out = dir.path().join("none");
    let outcome = fetch(&out, &format!("http://127.0.0.1:{port}/x.zip"), &digest);
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("try again"), "{}", outcome.stderr);
}

/// A server that does not know ranges, and breaks off the first `cut` connections half way.
fn serve_whole(file: Vec<u8>, cut: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}/archive.zip", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().flatten().enumerate() {
            let mut stream = stream;
            let mut lines = BufReader::new(stream.try_clone().expect("a stream")).lines();
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", file.len());
            let _ = stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes());
            let end = if n < cut { file.len() / 2 } else { file.len() };
            let _ = stream.write_all(&file[..end]);
        }
    });
    address
}

#[test]
fn a_server_without_ranges_is_asked_from_the_start() {
    let dir = folder();
    let file = archive();
    let digest = sha256(dir.path(), &file);
    let out = dir.path().join("wikitext");
    fs::create_dir(&out).expect("room");
    let part = out.join("wikitext-103-raw-v1.zip.part");
    fs::write(&part, b"of an earlier call").expect("room");
    let outcome = fetch(&out, &serve_whole(file.clone(), 2), &digest);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let train = fs::read_to_string(out.join("wiki.train.raw")).expect("the text");
    assert_eq!(train.lines().count(), 4000);

    // One that never sends it all is given up; what has come is kept.
    let out = dir.path().join("never");
    let outcome = fetch(&out, &serve_whole(file.clone(), usize::MAX), &digest);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    let half = format!("after {} of {} bytes", file.len() / 2, file.len());
    for word in ["try again", &half] {
        assert!(outcome.stderr.contains(word), "{word} in {}", outcome.stderr);
    }
    let part = out.join("wikitext-103-raw-v1.zip.part");
    assert_eq!(fs::metadata(part).expect("kept").len() as usize, file.len() / 2);
}

#[test]
fn a_part_of_another_file_is_thrown_away() {
    let dir = folder();
    let file = archive();
    let digest = sha256(dir.path(), &file);
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let url = serve(file.clone(), usize::MAX, Arc::clone(&ranges));
    let out = dir.path().join("wikitext");
    fs::create_dir(&out).expect("room");
    fs::write(out.join("wikitext-103-raw-v1.zip.part"), vec![7; 500]).expect("room");
    let outcome = fetch(&out, &url, &digest);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(*ranges.lock().expect("no panic"), ["bytes=500-", ""]);
    assert!(out.join("wiki.test.raw").is_file());
}
