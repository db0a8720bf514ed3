//! `onesigma train --tui`: live charts of a run.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use onesigma::train::telemetry::{Event, Observer};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, KeyCode, KeyEventKind, KeyModifiers};

mod dashboard;

pub use dashboard::Dashboard;

/// Time between two pictures.
const REFRESH: Duration = Duration::from_millis(200);

/// Shows a run on the whole terminal until it ends; a thread of its own draws and hears keys.
#[derive(Debug)]
pub struct Tui {
    dashboard: Arc<Mutex<Dashboard>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tui {
    /// Takes the terminal. `q` and Ctrl-C set `stop`; a second Ctrl-C ends the process.
    pub fn start(dashboard: Dashboard, stop: Arc<AtomicBool>) -> io::Result<Self> {
        let terminal = ratatui::try_init()?;
        let dashboard = Arc::new(Mutex::new(dashboard));
        let over = Arc::new(AtomicBool::new(false));
        let (shown, end) = (Arc::clone(&dashboard), Arc::clone(&over));
        let thread = std::thread::Builder::new()
            .name("onesigma-tui".into())
            .spawn(move || show(terminal, &shown, &stop, &end))?;
        Ok(Self { dashboard, over, thread: Some(thread) })
    }
}

fn show(
    mut terminal: DefaultTerminal,
    dashboard: &Mutex<Dashboard>,
    stop: &AtomicBool,
    over: &AtomicBool,
) {
    while !over.load(Ordering::Relaxed) {
        let drawn = terminal.draw(|frame| {
            dashboard.lock().unwrap_or_else(PoisonError::into_inner).draw(frame);
        });
        // A terminal that is gone is no reason to end the run.
        if drawn.is_err() {
            break;
        }
        if !event::poll(REFRESH).unwrap_or(false) {
            continue;
        }
        let Ok(event::Event::Key(key)) = event::read() else { continue };
        let is_interrupt =
            key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
        if key.kind == KeyEventKind::Press && (is_interrupt || key.code == KeyCode::Char('q')) {
            let before = stop.swap(true, Ordering::Relaxed);
            if before && is_interrupt {
                ratatui::restore();
                std::process::exit(130);
            }
            dashboard.lock().unwrap_or_else(PoisonError::into_inner).stopping();
        }
    }
    ratatui::restore();
}

impl Observer for Tui {
    fn event(&mut self, event: &Event) {
        self.dashboard.lock().unwrap_or_else(PoisonError::into_inner).note(event);
    }
}

impl Drop for Tui {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has restored the terminal by ratatui's own hook.
            let _ = thread.join();
        }
    }
}
