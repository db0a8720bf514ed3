//! Event files that TensorBoard reads.
//!
//! An event file is a row of records in TFRecord framing, each holding one protocol buffer
//! `tensorflow.Event`; only what scalars and texts need is written here. Framing:
//!
//! ```text
//! u64 length | u32 masked CRC-32C of the length | data | u32 masked CRC-32C of the data
//! ```
//!
//! all little-endian, with `masked(c) = rotate_right(c, 15) + 0xa282ead8` (TensorFlow,
//! `core/lib/io/record_writer.h` and `core/lib/hash/crc32c.h`; fields of `core/util/event.proto`
//! and `core/framework/summary.proto`). A process that continues a run writes a file of its own,
//! which starts by telling TensorBoard to forget what older files say of later steps.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Event, Observer, Record};
use crate::Error;

/// Writes scalars and texts to one event file.
#[derive(Debug)]
pub struct EventWriter<W: Write> {
    sink: W,
}

impl<W: Write> EventWriter<W> {
    /// A writer that begins with the version record.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn new(sink: W) -> io::Result<Self> {
        let mut writer = Self { sink };
        let mut event = Message::new();
        event.double(1, now());
        event.bytes(3, b"brain.Event:2");
        writer.record(&event.0)?;
        Ok(writer)
    }

    /// Tells the reader that the run starts (again) at `step`: what older files hold of that and
    /// later steps is void.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn restart(&mut self, step: u64) -> io::Result<()> {
        let mut start = Message::new();
        start.varint(1, 1); // SessionLog.START
        let mut event = Message::new();
        event.double(1, now());
        event.varint(2, step);
        event.bytes(7, &start.0);
        self.record(&event.0)
    }

    /// One number.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f32) -> io::Result<()> {
        let mut summary = Message::new();
        summary.bytes(1, tag.as_bytes());
        summary.float(2, value);
        self.summary(step, &summary)
    }

    /// One text, in Markdown.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn text(&mut self, tag: &str, step: u64, text: &str) -> io::Result<()> {
        let mut plugin = Message::new();
        plugin.bytes(1, b"text");
        let mut metadata = Message::new();
        metadata.bytes(1, &plugin.0);
        metadata.varint(4, 2); // DATA_CLASS_TENSOR
        let mut axis = Message::new();
        axis.varint(1, 1);
        let mut shape = Message::new();
        shape.bytes(2, &axis.0);
        let mut tensor = Message::new();
        tensor.varint(1, 7); // DT_STRING
        tensor.bytes(2, &shape.0);
        tensor.bytes(8, text.as_bytes());
        let mut summary = Message::new();
        summary.bytes(1, tag.as_bytes());
        summary.bytes(8, &tensor.0);
        summary.bytes(9, &metadata.0);
        self.summary(step, &summary)
    }

    /// Hands everything to the system.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }

    fn summary(&mut self, step: u64, value: &Message) -> io::Result<()> {
        let mut summary = Message::new();
        summary.bytes(1, &value.0);
        let mut event = Message::new();
        event.double(1, now());
        event.varint(2, step);
        event.bytes(5, &summary.0);
        self.record(&event.0)
    }

    fn record(&mut self, data: &[u8]) -> io::Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        self.sink.write_all(&length)?;
        self.sink.write_all(&masked_crc32c(&length).to_le_bytes())?;
        self.sink.write_all(data)?;
        self.sink.write_all(&masked_crc32c(data).to_le_bytes())
    }
}

/// A protocol buffer being written.
struct Message(Vec<u8>);

impl Message {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, wire: u64) {
        self.raw_varint(field << 3 | wire);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.raw_varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.raw_varint(value.len() as u64);
        self.0.extend(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }
}

/// CRC-32C (Castagnoli; RFC 3720, appendix B.4), rotated and shifted as the framing asks.
pub fn masked_crc32c(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn crc32c(data: &[u8]) -> u32 {
    let step = |crc: u32, &byte: &u8| TABLE[((crc ^ u32::from(byte)) & 0xff) as usize] ^ (crc >> 8);
    !data.iter().fold(!0, step)
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut crc = n as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
};

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// Writes what happens in a run to an event file; a disk that fails costs the events, not the run.
#[derive(Debug)]
pub struct TensorBoard {
    writer: Option<EventWriter<BufWriter<File>>>,
    path: PathBuf,
}

impl TensorBoard {
    /// An event file in `folder`, with the run's settings as a text.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(folder: &Path, settings: &str) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let seconds = now();
        let name = |n: u32| {
            format!("events.out.tfevents.{seconds:010.0}.onesigma.{}.{n}", std::process::id())
        };
        let free = (0..).map(|n| folder.join(name(n))).find(|path| !path.exists());
        let path = free.unwrap_or_else(|| folder.join(name(0)));
        let make = || {
            let mut writer = EventWriter::new(BufWriter::new(File::create_new(&path)?))?;
            let quoted: String = settings.lines().map(|line| format!("    {line}\n")).collect();
            writer.text("run/settings", 0, &quoted)?;
            writer.flush()?;
            Ok(writer)
        };
        let writer = make().map_err(Error::io("write", &path))?;
        Ok(Self { writer: Some(writer), path })
    }

    /// The event file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn write<W: Write>(writer: &mut EventWriter<W>, event: &Event) -> io::Result<()> {
    match event {
        Event::Started { first_step, .. } if *first_step > 0 => writer.restart(*first_step + 1),
        Event::Metric(Record::Train { step, loss, rate, grad_norm }) => {
            // TensorBoard counts as the evaluations do: steps that are done.
            let step = step + 1;
            writer.scalar("loss/training", step, *loss)?;
            writer.scalar("optimizer/learning_rate", step, *rate)?;
            match grad_norm {
                Some(norm) => writer.scalar("optimizer/gradient_norm", step, *norm),
                None => Ok(()),
            }
        }
        Event::Metric(Record::Evaluation { step, loss, accuracy }) => {
            writer.scalar("loss/validation", *step, *loss)?;
            if let Some(accuracy) = accuracy {
                writer.scalar("accuracy/validation", *step, *accuracy as f32)?;
            }
            writer.flush()
        }
        Event::Metric(Record::Speed { step, tokens_per_s }) => {
            writer.scalar("speed/tokens_per_second", *step, *tokens_per_s as f32)?;
            writer.flush()
        }
        Event::Metric(Record::Sample { step, text }) => {
            let quoted: String = text.lines().map(|line| format!("    {line}\n")).collect();
            writer.text("sample", *step, &quoted)
        }
        Event::Finished { .. } => writer.flush(),
        _ => Ok(()),
    }
}

impl Observer for TensorBoard {
    fn event(&mut self, event: &Event) {
        let Some(writer) = &mut self.writer else { return };
        if let Err(error) = write(writer, event) {
            tracing::warn!("no more events for TensorBoard in {}: {error}", self.path.display());
            self.writer = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_3720() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&rising), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// The data of each record, after both checksums of its frame.
    fn records(mut file: &[u8]) -> Vec<Vec<u8>> {
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
        let mut records = Vec::new();
        while !file.is_empty() {
            let length = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
            assert_eq!(word(&file[8..]), masked_crc32c(&file[..8]));
            let data = &file[12..12 + length];
            assert_eq!(word(&file[12 + length..]), masked_crc32c(data));
            records.push(data.to_vec());
            file = &file[16 + length..];
        }
        records
    }

    #[test]
    fn records_are_framed_and_hold_their_fields() {
        let mut file = Vec::new();
        let mut writer = EventWriter::new(&mut file).expect("room");
        writer.scalar("loss", 300, 2.5).expect("room");
        writer.restart(7).expect("room");
        let records = records(&file);
        assert_eq!(records.len(), 3);
        // wall_time (9 bytes), then field 3: the version.
        assert_eq!(records[0][9..], [&[0x1a, 13], &b"brain.Event:2"[..]].concat());
        // step 300 as a varint, then field 5 { field 1 { tag "loss", simple_value 2.5 } }.
        let value = [&[0x0a, 4], &b"loss"[..], &[0x15], &2.5f32.to_le_bytes()].concat();
        let expected = [&[0x10, 0xac, 0x02, 0x2a, 13, 0x0a, 11], &value[..]].concat();
        assert_eq!(records[1][9..], expected);
        assert_eq!(records[2][9..], [0x10, 7, 0x3a, 2, 0x08, 1]);
    }

    #[test]
    fn two_files_of_one_second_do_not_meet() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let first = TensorBoard::create(dir.path(), "steps = 1").expect("room");
        let second = TensorBoard::create(dir.path(), "steps = 1").expect("room");
        assert_ne!(first.path(), second.path());
    }
}
