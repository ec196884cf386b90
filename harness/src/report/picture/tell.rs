//! What a picture shows, in sentences.

use super::{Bar, Picture, Standing};
use tornblk_model::crash::RequestKind;

pub(super) fn sentences(picture: &Picture) -> Vec<String> {
    let mut told: Vec<String> =
        picture.bars.iter().filter(|bar| bar.blamed).map(|bar| of_bar(picture, bar)).collect();
    told.extend(match picture.left_out {
        0 => None,
        1 => Some("One more write is to blame, and is not drawn.".to_owned()),
        n => Some(format!("{n} more writes are to blame, and are not drawn.")),
    });
    told
}

/// "write 167 (16 KiB at byte 425984)"
pub(super) fn name(bar: &Bar) -> String {
    let (what, flags) = match bar.kind {
        RequestKind::Write { fua, atomic } => {
            let flags = [(fua, ", FUA"), (atomic, ", sent as atomic")];
            let flags: String = flags.iter().filter(|(on, _)| *on).map(|(_, word)| *word).collect();
            ("Write", flags)
        }
        RequestKind::Discard => ("Discard", String::new()),
        _ => ("Write zeroes", String::new()),
    };
    format!("{what} {} ({} at byte {}{flags})", bar.write, size(bar.len), bar.offset)
}

/// "16 KiB"
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0 => "0 bytes".to_owned(),
        n if n.is_multiple_of(1 << 20) => format!("{} MiB", n >> 20),
        n if n.is_multiple_of(1 << 10) => format!("{} KiB", n >> 10),
        n => format!("{n} bytes"),
    }
}

fn of_bar(picture: &Picture, bar: &Bar) -> String {
    let stood = match bar.standing {
        Standing::InFlight => "was in flight, the disk had not answered it".to_owned(),
        Standing::Volatile => {
            "had been answered, but no flush of it that was sent after that had, so the disk may lose it"
                .to_owned()
        }
        Standing::Failed => "had ended without success, so any of it may be there".to_owned(),
        Standing::Stable(Some(flush)) => format!("was stable by flush {flush}"),
        Standing::Stable(None) => "was stable as soon as it was answered".to_owned(),
    };
    let parts = if bar.parts == 1 { "it" } else { "all of it" };
    let became = match (bar.survived, bar.parts) {
        (0, _) if matches!(bar.standing, Standing::Stable(_)) => {
            "it is gone all the same".to_owned()
        }
        (0, _) => "it is gone".to_owned(),
        (n, all) if n == all => format!("{parts} survived"),
        (n, all) if bar.whole => format!(
            "{n} of its {all} parts survived, although {} keeps such a write whole",
            picture.profile
        ),
        (n, all) => format!("{n} of its {all} parts survived"),
    };
    format!("{} {stood}: {became}.", name(bar))
}
