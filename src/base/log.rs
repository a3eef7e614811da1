//! Log lines in the shape of etcd's logger, zap.
//!
//! Decides how a `tracing` event becomes one line, and where lines go. `config` sets the options;
//! everyone else uses `tracing`'s macros with etcd's message texts and field names:
//! `info!("data-dir" = %path, "opened backend db")`. Sets and lists go through [`Json`],
//! durations through [`crate::base::duration::Took`].
//!
//! ```text
//!   info!(..) --> ZapLayer --> level? --> Sampler --> Line --> json | console --> every output
//!                 write(..) ------------------------^   one write per line, under one lock
//! ```
//!
//! zap has two levels above `error` that tracing lacks; the targets [`FATAL`] and [`PANIC`] stand
//! for them. Any other target of its own is the name of a logger, such as etcd's `raft`. Events of
//! foreign crates pass from `warn` on: etcd drops the chatter of its libraries too. A panic becomes
//! a line as well, so that a log in JSON stays JSON to its end.
//!
//! Deliberately absent: spans (distributed tracing brings its own layer) and rotation.
//!
//! Source: etcd `client/pkg/logutil/zap.go`; zap's JSON and console encoders and its sampler.

use std::{
    fmt::{self, Write as _},
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    panic::{self, Location},
    path::{Path, PathBuf},
    sync::{
        Arc, LazyLock, Mutex, Once, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use serde::Serialize;
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    subscriber::Interest,
};
use tracing_subscriber::{Layer, Registry, layer::Context, layer::SubscriberExt};

use crate::base::clock::Clock;

/// Target of events that end the process: `error!(target: log::FATAL, ..)`.
pub const FATAL: &str = "fatal";

/// Target of events that report a broken promise of the program itself.
pub const PANIC: &str = "panic";

/// Marks the debug text of [`Json`]; no text that is logged as a string starts with it.
const RAW: char = '\u{0}';

/// How grave a line is, in zap's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For those who search for a fault.
    Debug,
    /// What an operator may want to know.
    Info,
    /// What an operator should look at.
    Warn,
    /// Something failed.
    Error,
    /// The program broke a promise to itself.
    Panic,
    /// The process ends after this line.
    Fatal,
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object per line.
    Json,
    /// Columns separated by tabs, then the fields as JSON.
    Console,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Output {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// Appended to a file, which is created with mode 0600 if absent.
    File(PathBuf),
}

/// What to log, how, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Lines below this are dropped.
    pub level: Level,
    /// How a line looks.
    pub format: Format,
    /// Where lines go; none discards them.
    pub outputs: Vec<Output>,
}

impl Default for Options {
    fn default() -> Self {
        Self { level: Level::Info, format: Format::Json, outputs: vec![Output::Stderr] }
    }
}

/// A log file that cannot be opened.
#[derive(Debug)]
pub struct OpenError {
    /// The file.
    pub path: PathBuf,
    /// What the system says.
    pub source: io::Error,
}

/// A field value that is shown as JSON rather than as a string: lists, sets, objects.
#[derive(Clone, Copy)]
pub struct Json<T>(pub T);

impl<T: Serialize> fmt::Debug for Json<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char(RAW)?;
        f.write_str(&serde_json::to_string(&self.0).unwrap_or_default())
    }
}

impl Level {
    /// zap's word for the level.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Panic => "panic",
            Self::Fatal => "fatal",
        }
    }

    fn of(metadata: &Metadata<'_>) -> Self {
        match metadata.target() {
            FATAL => Self::Fatal,
            PANIC => Self::Panic,
            _ => match *metadata.level() {
                tracing::Level::ERROR => Self::Error,
                tracing::Level::WARN => Self::Warn,
                tracing::Level::INFO => Self::Info,
                tracing::Level::DEBUG | tracing::Level::TRACE => Self::Debug,
            },
        }
    }
}

/// Starts logging with the default options and turns panics into log lines.
///
/// A second call does nothing; a process that already has another subscriber keeps it.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let subscriber = Registry::default().with(ZapLayer);
        if tracing::subscriber::set_global_default(subscriber).is_ok() {
            panic::set_hook(Box::new(report_panic));
        }
    });
}

/// Changes what is logged, how, and where, for the whole process.
///
/// # Errors
/// If a log file cannot be opened; the former options stay.
pub fn configure(options: &Options) -> Result<(), OpenError> {
    LOGGER.store(Arc::new(Logger::open(options)?));
    tracing::callsite::rebuild_interest_cache();
    Ok(())
}

/// Writes one line whose fields are not known at compile time, on behalf of the caller.
#[track_caller]
pub fn write(level: Level, message: &str, fields: &[(&str, serde_json::Value)]) {
    let logger = LOGGER.load();
    if level < logger.level || !logger.sampler.admits(level, message, logger.now()) {
        return;
    }
    let mut line = Line { message: message.to_owned(), ..Line::default() };
    for (name, value) in fields {
        line.field(name, &value.to_string());
    }
    let caller = Location::caller();
    logger.emit(level, Some((caller.file(), caller.line())), &line);
}

static LOGGER: LazyLock<ArcSwap<Logger>> = LazyLock::new(|| {
    let logger = Logger::open(&Options::default()).expect("standard error needs no opening");
    ArcSwap::from_pointee(logger)
});

struct Logger {
    level: Level,
    format: Format,
    sampler: Sampler,
    clock: Clock,
    outputs: Mutex<Vec<Target>>,
}

enum Target {
    Stderr,
    Stdout,
    File(File),
}

impl Logger {
    fn open(options: &Options) -> Result<Self, OpenError> {
        let mut outputs = Vec::with_capacity(options.outputs.len());
        for output in &options.outputs {
            outputs.push(match output {
                Output::Stderr => Target::Stderr,
                Output::Stdout => Target::Stdout,
                Output::File(path) => Target::File(open_log_file(path)?),
            });
        }
        Ok(Self {
            level: options.level,
            format: options.format,
            sampler: Sampler::new(),
            clock: Clock::system(),
            outputs: Mutex::new(outputs),
        })
    }

    fn now(&self) -> Duration {
        self.clock.now()
    }

    fn emit(&self, level: Level, caller: Option<(&str, u32)>, line: &Line) {
        let text = match self.format {
            Format::Json => line.json(level, self.clock.unix(), caller),
            Format::Console => line.console(level, self.clock.unix(), caller),
        };
        let mut outputs = self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
        for output in outputs.iter_mut() {
            // A log that cannot be written must not stop the member, and has no better place to
            // complain to.
            drop(match output {
                Target::Stderr => io::stderr().lock().write_all(text.as_bytes()),
                Target::Stdout => io::stdout().lock().write_all(text.as_bytes()),
                Target::File(file) => file.write_all(text.as_bytes()),
            });
        }
    }
}

fn open_log_file(path: &Path) -> Result<File, OpenError> {
    let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    opened.map_err(|source| OpenError { path: path.to_path_buf(), source })
}

/// The first [`SAMPLED_FIRST`] lines of one text in a second pass, then one in [`SAMPLED_EACH`].
struct Sampler {
    slots: Box<[Slot]>,
}

#[derive(Default)]
struct Slot {
    second: AtomicU64,
    seen: AtomicU32,
}

const SAMPLED_FIRST: u32 = 100;
const SAMPLED_EACH: u32 = 100;

/// Texts share a counter if their hashes meet, as in zap, which has 4,096 counters per level. The
/// server has some hundred texts.
const SAMPLER_SLOTS: u64 = 1024;

impl Sampler {
    fn new() -> Self {
        Self { slots: (0..SAMPLER_SLOTS).map(|_| Slot::default()).collect() }
    }

    fn admits(&self, level: Level, message: &str, now: Duration) -> bool {
        let slot = &self.slots[slot_of(level, message)];
        // Seconds count from 1, so that a fresh slot is always out of date.
        let second = now.as_secs() + 1;
        if slot.second.swap(second, Ordering::Relaxed) != second {
            slot.seen.store(0, Ordering::Relaxed);
        }
        let seen = slot.seen.fetch_add(1, Ordering::Relaxed);
        seen < SAMPLED_FIRST || (seen - SAMPLED_FIRST).is_multiple_of(SAMPLED_EACH)
    }
}

/// FNV-1a over the level and the text.
fn slot_of(level: Level, message: &str) -> usize {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in level.name().bytes().chain(message.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    usize::try_from(hash % SAMPLER_SLOTS).expect("the remainder is below the number of slots")
}

struct ZapLayer;

impl<S: Subscriber> Layer<S> for ZapLayer {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if metadata.is_event() && passes(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _context: Context<'_, S>) -> bool {
        passes(metadata)
    }

    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let logger = LOGGER.load();
        let metadata = event.metadata();
        let level = Level::of(metadata);
        let mut line = Line { logger: name_of(metadata), ..Line::default() };
        event.record(&mut line);
        if logger.sampler.admits(level, &line.message, logger.now()) {
            logger.emit(level, metadata.file().zip(metadata.line()), &line);
        }
    }
}

fn passes(metadata: &Metadata<'_>) -> bool {
    let level = Level::of(metadata);
    let ours = metadata.module_path().is_some_and(|path| path.starts_with("oxetcd"));
    LOGGER.load().level <= level && (ours || Level::Warn <= level)
}

/// The name of the logger: a target that is no path of ours, such as etcd's `raft`.
fn name_of(metadata: &'static Metadata<'static>) -> Option<&'static str> {
    let target = metadata.target();
    let named = metadata.module_path() != Some(target) && target != FATAL && target != PANIC;
    named.then_some(target)
}

/// The parts of a line that the event itself carries; `fields` is the inside of a JSON object.
#[derive(Default)]
struct Line {
    logger: Option<&'static str>,
    message: String,
    fields: String,
}

impl Line {
    fn field(&mut self, name: &str, json: &str) {
        let separator = if self.fields.is_empty() { "" } else { "," };
        write!(self.fields, "{separator}{}:{json}", quoted(name)).expect("a string grows");
    }

    fn json(&self, level: Level, unix: Duration, caller: Option<(&str, u32)>) -> String {
        let mut text = format!(r#"{{"level":"{}","ts":"{}""#, level.name(), timestamp(unix));
        if let Some(logger) = self.logger {
            write!(text, r#","logger":{}"#, quoted(logger)).expect("a string grows");
        }
        if let Some((file, line)) = caller {
            write!(text, r#","caller":{}"#, quoted(&format!("{}:{line}", short(file))))
                .expect("a string grows");
        }
        let separator = if self.fields.is_empty() { "" } else { "," };
        writeln!(text, r#","msg":{}{separator}{}}}"#, quoted(&self.message), self.fields)
            .expect("a string grows");
        text
    }

    fn console(&self, level: Level, unix: Duration, caller: Option<(&str, u32)>) -> String {
        let mut text = format!("{}\t{}\t", timestamp(unix), level.name());
        if let Some(logger) = self.logger {
            write!(text, "{logger}\t").expect("a string grows");
        }
        if let Some((file, line)) = caller {
            write!(text, "{}:{line}\t", short(file)).expect("a string grows");
        }
        text.push_str(&self.message);
        if !self.fields.is_empty() {
            write!(text, "\t{{{}}}", self.fields).expect("a string grows");
        }
        text.push('\n');
        text
    }

    fn text(&mut self, field: &Field, text: &str) {
        if field.name() == "message" {
            text.clone_into(&mut self.message);
        } else {
            self.field(field.name(), &quoted(text));
        }
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field.name(), if value { "true" } else { "false" });
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field.name(), &value.to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field.name(), &value.to_string());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.field(field.name(), &serde_json::Value::from(value).to_string());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.text(field, &value.to_string());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        // What a client sent may start with the mark too; only JSON may enter the line as it is.
        let json = text.strip_prefix(RAW).filter(|json| is_json(json));
        match json {
            Some(json) => self.field(field.name(), json),
            None => self.text(field, &text),
        }
    }
}

fn is_json(text: &str) -> bool {
    !text.contains('\n') && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("every string has a JSON form")
}

/// The last folder and the file, as zap shortens callers.
fn short(file: &str) -> &str {
    match file.rmatch_indices('/').nth(1) {
        Some((at, _)) => &file[at + 1..],
        None => file,
    }
}

/// UTC with microseconds, such as `2026-01-31T23:59:59.000001Z`.
#[must_use]
pub fn timestamp(unix: Duration) -> String {
    let seconds = unix.as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    let micros = unix.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// The time as HTTP has it, such as `Sat, 31 Jan 2026 23:59:59 GMT`.
#[must_use]
pub fn http_date(unix: Duration) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = unix.as_secs();
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let name_of = |names: &[&'static str], number: u64| {
        usize::try_from(number).ok().and_then(|number| names.get(number)).copied().unwrap_or("")
    };
    let (weekday, month) = (name_of(&DAYS, days % 7), name_of(&MONTHS, month - 1));
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

/// The date of a day after 1970-01-01, in the Gregorian calendar.
///
/// Counts in years that start in March, so that the leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

fn report_panic(info: &panic::PanicHookInfo<'_>) {
    let payload = info.payload();
    let message = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic without a text".to_owned());
    let mut line = Line { message, ..Line::default() };
    line.field("thread", &quoted(std::thread::current().name().unwrap_or_default()));
    let caller = info.location().map(|location| (location.file(), location.line()));
    LOGGER.load().emit(Level::Panic, caller, &line);
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use serde_json::Value;
    use tracing::{Subscriber, error, info, subscriber::with_default};
    use tracing_subscriber::{Layer, Registry, layer::Context, layer::SubscriberExt};

    use super::{
        Event, FATAL, Format, Json, Level, Line, Logger, Options, Output, Sampler, name_of,
        timestamp,
    };

    /// The layer of production with a logger of its own.
    struct TestLayer(Logger);

    impl<S: Subscriber> Layer<S> for TestLayer {
        fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
            let metadata = event.metadata();
            let mut line = Line { logger: name_of(metadata), ..Line::default() };
            event.record(&mut line);
            self.0.emit(Level::of(metadata), metadata.file().zip(metadata.line()), &line);
        }
    }

    fn lines(format: Format, body: impl FnOnce()) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let outputs = vec![Output::File(path.clone())];
        let logger = Logger::open(&Options { format, outputs, ..Options::default() }).unwrap();
        with_default(Registry::default().with(TestLayer(logger)), body);
        fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_json_line_has_the_keys_that_zap_writes_in_its_order() {
        let lines = lines(Format::Json, || {
            let urls = ["http://a:1", "http://b:2"];
            info!("data-dir" = "d\"1\n", n = 3, ok = true, urls = ?Json(urls), "hello {}", "you");
        });
        let value: Value = serde_json::from_str(&lines[0]).unwrap();
        let keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = ["level", "ts", "caller", "msg", "data-dir", "n", "ok", "urls"];
        assert_eq!(keys, expected, "in {}", lines[0]);
        assert_eq!(value["level"], "info", "in {}", lines[0]);
        assert_eq!(value["msg"], "hello you", "in {}", lines[0]);
        assert_eq!(value["data-dir"], "d\"1\n", "in {}", lines[0]);
        assert_eq!(value["urls"][1], "http://b:2", "in {}", lines[0]);
        let caller = value["caller"].as_str().unwrap();
        assert!(caller.starts_with("base/log.rs:"), "the caller is {caller}");
    }

    #[test]
    fn a_named_logger_shows_before_the_caller() {
        let lines = lines(Format::Json, || info!(target: "raft", "became leader"));
        let value: Value = serde_json::from_str(&lines[0]).unwrap();
        let keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["level", "ts", "logger", "caller", "msg"], "in {}", lines[0]);
        assert_eq!(value["logger"], "raft", "in {}", lines[0]);
    }

    #[test]
    fn text_that_pretends_to_be_json_stays_text() {
        let lines = lines(Format::Json, || {
            let key = "\u{0}1,\"level\":\"error\"";
            info!(key = %key, "put");
        });
        let value: Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(value["level"], "info", "in {}", lines[0]);
        assert_eq!(value["key"], "\u{0}1,\"level\":\"error\"", "in {}", lines[0]);
    }

    #[test]
    fn the_console_format_has_columns_and_then_the_fields() {
        let lines =
            lines(Format::Console, || error!(target: FATAL, error = "e", "listener failed"));
        let columns: Vec<_> = lines[0].split('\t').collect();
        assert_eq!(columns.len(), 5, "columns of {:?}", lines[0]);
        assert_eq!((columns[1], columns[3]), ("fatal", "listener failed"), "in {:?}", lines[0]);
        assert_eq!(columns[4], r#"{"error":"e"}"#, "in {:?}", lines[0]);
    }

    #[test]
    fn timestamps_follow_the_calendar() {
        for (seconds, micros, text) in [
            (0, 0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, 7, "2000-02-29T00:00:00.000007Z"),
            (1_704_067_199, 999_999, "2023-12-31T23:59:59.999999Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000Z"),
        ] {
            let unix = Duration::from_secs(seconds) + Duration::from_micros(micros);
            assert_eq!(timestamp(unix), text, "{seconds} seconds after 1970");
        }
    }

    #[test]
    fn a_repeated_line_is_thinned_out_until_the_next_second() {
        let sampler = Sampler::new();
        let passed = |second| {
            let now = Duration::from_secs(second);
            (0..1_000).filter(|_| sampler.admits(Level::Warn, "again", now)).count()
        };
        assert_eq!(passed(0), 109, "100 of the first 100, then 9 of 900");
        assert_eq!(passed(1), 109, "a new second starts anew");
        let other = sampler.admits(Level::Warn, "another text", Duration::from_secs(1));
        assert!(other, "texts are counted apart");
    }
}
