//! From the start of the process to its first answer, where there is much to look at: a sparse disk
//! of 1 TiB, and a recording that goes on.

use super::client::{Driver, End};
use super::server::{Places, QUEUES, remove};
use super::{BenchError, Load};
use crate::device::Device;
use std::ffi::OsString;
use std::time::{Duration, Instant};
use tornblk_model::recording::Reader;

const DISK: u64 = 1 << 40;
/// Two for each request: its submission and its end.
const EVENTS: u64 = 1_000_000;
pub const ROUNDS: u32 = 5;

/// How long each start took. `tell` is asked before each step, and may end it.
pub fn measure(
    places: &Places,
    tell: &mut dyn FnMut(&str) -> Result<(), BenchError>,
) -> Result<Vec<Duration>, BenchError> {
    let (image, recording) = (places.folder.join("sparse.img"), places.folder.join("long"));
    let log = places.folder.join("tornblkd.log");
    let failed = |source| BenchError::Io { what: "make", path: image.clone(), source };
    std::fs::File::create(&image).and_then(|file| file.set_len(DISK)).map_err(failed)?;
    remove(&recording)?;
    let queues = QUEUES.to_string();
    let arguments: Vec<OsString> =
        [&["--num-queues".as_ref(), queues.as_ref(), "--image".as_ref(), image.as_os_str()][..]]
            .concat()
            .into_iter()
            .chain(["--recording".as_ref(), recording.as_os_str()])
            .map(OsString::from)
            .collect();
    let client = |why| BenchError::Client { what: "ask", server: "recording".to_owned(), why };
    tell("a recording of a million events is made")?;
    let device = Device::launch(&places.tornblkd, arguments.clone(), &log)?;
    let mut driver = Driver::connect(&device.socket(), 1).map_err(client)?;
    let made = driver.run(Load::RandWrite32, End::Requests(EVENTS / 2), 1).map_err(client)?;
    if let Some(code) = made.error {
        return Err(client(format!("a request failed with error {code}")));
    }
    drop(driver);
    device.stop()?;
    let opened = Reader::open(&recording).and_then(|reader| reader.info());
    let events = opened.map_err(|e| client(e.to_string()))?.events;
    if events < EVENTS {
        return Err(client(format!("the recording has {events} events, and {EVENTS} are wanted")));
    }
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        tell("it is gone on with")?;
        let start = Instant::now();
        let device = Device::launch(&places.tornblkd, arguments.clone(), &log)?;
        let mut driver = Driver::connect(&device.socket(), 1).map_err(client)?;
        let answered = driver.run(Load::RandRead1, End::Requests(1), 1).map_err(client)?;
        took.push(start.elapsed());
        if let Some(code) = answered.error {
            return Err(client(format!("the first request failed with error {code}")));
        }
        drop(driver);
        device.stop()?;
    }
    remove(&recording)?;
    remove(&image)?;
    Ok(took)
}
