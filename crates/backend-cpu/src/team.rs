//! The threads that share the tasks of a kernel.
//!
//! A step of a small model is hundreds of kernels of a few microseconds each, so handing out tasks
//! must cost less than that: while one thread, the *leader*, runs a program, the others spin for
//! the next kernel and go to sleep only after a while without one. Which thread runs which task
//! changes no result (see [`crate::parallel`]).

use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

/// Turns of waiting before a helper sleeps: some 50 µs, more than kernels lie apart.
const SPINS: u32 = 2_000;
/// Turns of waiting for other threads before the leader lets something else run.
const PATIENCE: u32 = 500;

/// The state word: number of the job, whether it is open, how many helpers work on it.
const JOB: u32 = 32;
const OPEN: u64 = 1 << 31;
const ACTIVE: u64 = OPEN - 1;
const OVER: u64 = u64::MAX;

/// A task with its type taken away.
#[derive(Clone, Copy)]
struct Job {
    call: unsafe fn(*const (), usize),
    task: *const (),
    count: usize,
}

/// What leader and helpers look at.
struct Shared {
    state: AtomicU64,
    next: AtomicUsize,
    job: UnsafeCell<Job>,
    panicked: AtomicBool,
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is written by the leader while no job is open and no helper active, and read by
// helpers while one is; `state` orders the two. Its pointer is to a `Sync` task that outlives that.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// What the current thread is to a team.
#[derive(Clone, Copy)]
enum Part {
    Stranger,
    Leader(*const Shared),
    /// Inside a task: tasks of tasks run one after another.
    Busy,
}

thread_local! {
    static PART: Cell<Part> = const { Cell::new(Part::Stranger) };
}

/// Plays a part until it is dropped.
struct Playing {
    before: Part,
}

impl Playing {
    fn new(part: Part) -> Self {
        Self { before: PART.replace(part) }
    }
}

impl Drop for Playing {
    fn drop(&mut self) {
        PART.set(self.before);
    }
}

/// Ends a job: no helper joins any more, and none is active after it is dropped.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut turns = 0;
        while self.0.state.load(Ordering::Acquire) & ACTIVE != 0 {
            pause(&mut turns);
        }
    }
}

fn pause(turns: &mut u32) {
    *turns += 1;
    if *turns < PATIENCE { std::hint::spin_loop() } else { std::thread::yield_now() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn publish(&self, state: u64) {
        self.state.store(state, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _bed = lock(&self.bed);
            self.wake.notify_all();
        }
    }

    /// Runs `task(0) .. task(count - 1)`, shared with the helpers. Only the leader calls this, not
    /// from within a task.
    fn run<F: Fn(usize) + Sync>(&self, count: usize, task: &F) {
        /// # Safety
        /// `task` is an `F` that lives.
        unsafe fn call<F: Fn(usize)>(task: *const (), index: usize) {
            // SAFETY: as this function.
            unsafe { (*task.cast::<F>())(index) }
        }
        let _busy = Playing::new(Part::Busy);
        // SAFETY: the last job is closed and left, so no one else looks at it.
        unsafe {
            *self.job.get() = Job { call: call::<F>, task: (&raw const *task).cast(), count }
        };
        self.next.store(0, Ordering::Relaxed);
        let number = (self.state.load(Ordering::Relaxed) >> JOB) + 1;
        {
            let _closing = Closing(self);
            self.publish(number << JOB & (OVER >> 1) | OPEN);
            self.work();
        }
        if self.panicked.swap(false, Ordering::Relaxed) {
            panic!("a task panicked on another thread");
        }
    }

    /// Takes tasks of the open job until there is none left.
    fn work(&self) {
        // SAFETY: a job is open or this thread is active in it, so it does not change.
        let job = unsafe { *self.job.get() };
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= job.count {
                return;
            }
            // SAFETY: `run` holds the task until no helper is active.
            unsafe { (job.call)(job.task, index) };
        }
    }

    /// What a helper does all its life.
    fn help(&self) {
        let _busy = Playing::new(Part::Busy);
        let (mut done, mut turns) = (0, 0);
        loop {
            let state = self.state.load(Ordering::Acquire);
            if state == OVER {
                return;
            }
            if is_new(state, done) {
                let joined = self.state.compare_exchange_weak(
                    state,
                    state + 1,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
                if joined.is_ok() {
                    done = state >> JOB;
                    if catch_unwind(AssertUnwindSafe(|| self.work())).is_err() {
                        self.panicked.store(true, Ordering::Relaxed);
                    }
                    self.state.fetch_sub(1, Ordering::Release);
                    turns = 0;
                }
                continue;
            }
            turns += 1;
            if turns < SPINS {
                std::hint::spin_loop();
            } else {
                self.sleep(done);
                turns = 0;
            }
        }
    }

    fn sleep(&self, done: u64) {
        let bed = lock(&self.bed);
        // The leader stores the state, then looks for sleepers; a helper does the reverse.
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let state = self.state.load(Ordering::SeqCst);
        if state != OVER && !is_new(state, done) {
            drop(self.wake.wait(bed));
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

fn is_new(state: u64, done: u64) -> bool {
    state & OPEN != 0 && state >> JOB != done
}

/// A leader's helpers: threads that live as long as this.
pub(crate) struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    leading: Mutex<()>,
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Team").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

impl Team {
    /// `threads`, at least 1, with the one that leads.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let idle = |_: *const (), _: usize| {};
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            job: UnsafeCell::new(Job { call: idle, task: std::ptr::null(), count: 0 }),
            panicked: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            wake: Condvar::new(),
        });
        let mut team = Self { shared, helpers: Vec::new(), leading: Mutex::new(()) };
        for at in 1..threads {
            let shared = team.shared.clone();
            let name = format!("onesigma-cpu-{at}");
            // An error drops the team, which ends the helpers that there are.
            let helper = std::thread::Builder::new().name(name).spawn(move || shared.help())?;
            team.helpers.push(helper);
        }
        Ok(team)
    }

    /// The team of kernels that run outside an engine, and of engines that have none of their own:
    /// as many threads as `ONESIGMA_THREADS` says, else `RAYON_NUM_THREADS`, else as there are
    /// processors.
    pub(crate) fn global() -> &'static Arc<Self> {
        static GLOBAL: OnceLock<Arc<Team>> = OnceLock::new();
        GLOBAL.get_or_init(|| {
            let named = |name| std::env::var(name).ok()?.parse().ok().filter(|count| *count > 0);
            let threads = named("ONESIGMA_THREADS").or_else(|| named("RAYON_NUM_THREADS"));
            let all = || std::thread::available_parallelism().map_or(1, |count| count.get());
            let team = Self::new(threads.unwrap_or_else(all)).or_else(|_| Self::new(1));
            Arc::new(team.expect("one thread is this one"))
        })
    }

    pub(crate) fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Runs `body` with this thread as leader. If another thread leads already, tasks run on this
    /// thread alone.
    pub(crate) fn lead<T>(&self, body: impl FnOnce() -> T) -> T {
        let leading = self.leading.try_lock();
        let part = match &leading {
            Ok(_) => Part::Leader(Arc::as_ptr(&self.shared)),
            Err(std::sync::TryLockError::Poisoned(_)) => Part::Leader(Arc::as_ptr(&self.shared)),
            Err(std::sync::TryLockError::WouldBlock) => Part::Busy,
        };
        let _playing = Playing::new(part);
        body()
    }

    /// Calls `task` once on each thread, at the same time, from the thread that leads.
    pub(crate) fn on_each(&self, task: impl Fn() + Sync) {
        let (threads, arrived) = (self.threads(), AtomicUsize::new(0));
        if matches!(PART.get(), Part::Busy) {
            return task();
        }
        for_each_task(threads, |_| {
            // A thread that has arrived takes no second task.
            arrived.fetch_add(1, Ordering::AcqRel);
            let mut turns = 0;
            while arrived.load(Ordering::Acquire) < threads {
                pause(&mut turns);
            }
            task();
        });
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.publish(OVER);
        for helper in self.helpers.drain(..) {
            // A helper catches the panics of its tasks.
            let _ = helper.join();
        }
    }
}

/// Runs `task(0) .. task(count - 1)` on the team that this thread leads, else on the global one;
/// within a task, on this thread.
pub(crate) fn for_each_task(count: usize, task: impl Fn(usize) + Sync) {
    if count <= 1 {
        return (0..count).for_each(task);
    }
    match PART.get() {
        Part::Busy => (0..count).for_each(task),
        // SAFETY: this thread leads, so `Team::lead` is running and its team lives.
        Part::Leader(shared) => unsafe { &*shared }.run(count, &task),
        Part::Stranger => Team::global().lead(|| for_each_task(count, task)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_on_any_number_of_threads() {
        for threads in [1, 2, 3, 7] {
            let team = Team::new(threads).expect("threads");
            team.lead(|| {
                for round in 0..2_000 {
                    let count = 1 + round % 37;
                    let runs: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                    for_each_task(count, |i| {
                        runs[i].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1));
                    if round % 500 == 0 {
                        std::thread::sleep(std::time::Duration::from_millis(2)); // helpers sleep
                    }
                }
            });
        }
    }

    #[test]
    fn each_thread_takes_part_once() {
        let team = Team::new(3).expect("threads");
        let seen = Mutex::new(Vec::new());
        team.lead(|| team.on_each(|| lock(&seen).push(std::thread::current().id())));
        let seen = lock(&seen);
        assert_eq!(seen.iter().collect::<std::collections::HashSet<_>>().len(), 3);
    }

    #[test]
    fn tasks_of_tasks_and_second_leaders_run_alone() {
        let team = Team::new(2).expect("threads");
        let sum = AtomicUsize::new(0);
        team.lead(|| {
            for_each_task(4, |_| {
                for_each_task(5, |i| {
                    sum.fetch_add(i, Ordering::Relaxed);
                });
            });
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    team.lead(|| {
                        for_each_task(5, |i| {
                            sum.fetch_add(i, Ordering::Relaxed);
                        });
                    });
                });
            });
        });
        assert_eq!(sum.into_inner(), 50);
    }

    #[test]
    fn a_panic_of_a_task_reaches_the_leader_and_the_team_goes_on() {
        let team = Team::new(2).expect("threads");
        for _ in 0..50 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                team.lead(|| for_each_task(8, |i| assert!(i != 5, "wanted")));
            }));
            assert!(result.is_err());
            let count = AtomicUsize::new(0);
            team.lead(|| {
                for_each_task(8, |_| {
                    count.fetch_add(1, Ordering::Relaxed);
                });
            });
            assert_eq!(count.into_inner(), 8);
        }
    }
}
