#![allow(clippy::unwrap_used)]
use super::*;
use proptest::prelude::*;

const SEG_MAX: u32 = 254;

fn plain() -> LimitOptions {
    LimitOptions { seg_max: SEG_MAX, ..LimitOptions::default() }
}

fn profile(name: &str) -> LimitOptions {
    LimitOptions { profile: Some(name.parse().unwrap()), ..plain() }
}

fn refused(want: LimitOptions) -> String {
    Limits::new(&want).unwrap_err().to_string()
}

#[test]
fn a_scsi_disk_has_no_boundary_of_its_own() {
    let scsi = |name: &str| LimitOptions { front_end: FrontEnd::Scsi, ..profile(name) };
    for (name, works) in [
        ("req16k+b16k", "--profile explicit16k+b16k "),
        ("req16k+min4k+b64k", "--profile explicit16k+min4k+b64k "),
    ] {
        let why = refused(scsi(name));
        assert!(why.starts_with(&format!("--profile {name} means that ")), "{why}");
        assert!(why.contains(works), "{why}");
        Limits::new(&profile(name)).unwrap();
    }
    let said = LimitOptions { profile: None, unit_max: Some(16384), ..scsi("lb") };
    let why = refused(LimitOptions { boundary: Some(32768), ..said.clone() });
    assert!(why.contains("--profile explicit16k+b32k "), "{why}");
    let mode = Some(AtomicMode::Explicit);
    Limits::new(&LimitOptions { boundary: Some(32768), mode, ..said }).unwrap();
    Limits::new(&scsi("explicit16k+b16k")).unwrap();
}

#[test]
fn what_is_advised_is_taken() {
    // Whatever is refused, with the first value that is named instead it is not, or not for that.
    let sizes = [300 << 10, 512 << 10, 1 << 20, 3 << 20, 16 << 20, 1 << 30];
    for front_end in [FrontEnd::Blk, FrontEnd::Scsi] {
        for (seg_max, bytes) in [6, 126, 254, 1022].into_iter().flat_map(|s| sizes.map(|b| (s, b)))
        {
            let seg_max =
                if front_end == FrontEnd::Scsi { seg_max.min(FRONT_END_SEG_MAX) } else { seg_max };
            let want = LimitOptions { front_end, seg_max, ..LimitOptions::default() };
            for (option, unit_max, max_bytes) in [
                ("--atomic-unit-max", Some(bytes), None),
                ("--atomic-max-bytes", Some(16384), Some(bytes)),
            ] {
                let asked = LimitOptions { unit_max, max_bytes, ..want.clone() };
                let Err(error) = Limits::new(&asked) else { continue };
                let error = error.to_string();
                let advised = error.split(&format!("Use {option} ")).nth(1);
                let advised = advised.or_else(|| error.split("use ").nth(1)).unwrap();
                let word = advised.split([' ', ',']).next().unwrap();
                let advised: Size = word.parse().unwrap_or_else(|_| panic!("{error}"));
                let better = match option {
                    "--atomic-unit-max" => LimitOptions { unit_max: Some(advised.0), ..asked },
                    _ => LimitOptions { max_bytes: Some(advised.0), ..asked },
                };
                let again = Limits::new(&better);
                assert!(again.is_ok(), "{error}\n{word}: {}", again.unwrap_err());
            }
        }
    }
}

#[test]
fn nothing_said_promises_nothing() {
    let limits = Limits::new(&plain()).unwrap();
    assert_eq!((limits.logical_block_size, limits.physical_block_size), (512, 512));
    assert_eq!(limits.profile, Profile::PLAIN);
    assert_eq!(limits.config_byte(), 0);
    assert!(!limits.atomic());
    assert_eq!(limits.tear_unit(), 512);
}

#[test]
fn the_largest_write_alone_says_the_rest() {
    for want in [
        LimitOptions { unit_max: Some(65536), ..plain() },
        LimitOptions { max_bytes: Some(65536), ..plain() },
        LimitOptions { max_bytes: Some(65536), mode: Some(AtomicMode::Implicit), ..plain() },
        profile("req64k"),
    ] {
        let p = Limits::new(&want).unwrap().profile;
        assert_eq!((p.unit_min, p.unit_max, p.max_bytes), (512, 65536, 65536));
        assert_eq!((p.mode, p.boundary), (AtomicMode::Implicit, 0));
    }
    let odd = Limits::new(&LimitOptions { max_bytes: Some(48 << 10), ..plain() }).unwrap();
    assert_eq!(odd.profile.unit_max, 32 << 10);
}

#[test]
fn the_block_size_of_a_profile_is_the_disk_s() {
    let limits = Limits::new(&profile("lba16k")).unwrap();
    assert_eq!((limits.logical_block_size, limits.physical_block_size), (16384, 16384));
    let both = LimitOptions { logical_block_size: Some(4096), ..profile("lb4k") };
    assert_eq!(Limits::new(&both).unwrap().logical_block_size, 4096);
    let limits = LimitOptions { logical_block_size: Some(4096), ..profile("req16k") };
    assert_eq!(Limits::new(&limits).unwrap().profile.unit_min, 4096);
}

#[test]
fn what_is_accepted_is_what_the_model_accepts() {
    use tornblk_model::event::Disk;
    for want in [
        plain(),
        profile("req16k+b16k"),
        profile("piece16k"),
        profile("garbage"),
        profile("explicit64k"),
        LimitOptions { logical_block_size: Some(4096), ..profile("req512k") },
        LimitOptions { unit_max: Some(16384), tear_unit: Some(1536), ..plain() },
    ] {
        let limits = Limits::new(&want).unwrap();
        let disk = Disk { capacity: 1 << 20, lb_size: limits.logical_block_size };
        limits.profile.check(&disk).unwrap();
    }
}

#[test]
fn the_config_byte_says_smallest_and_largest() {
    let byte = |min: u64, max: u64, block: u64| {
        Limits::new(&LimitOptions {
            logical_block_size: Some(block),
            unit_min: Some(min),
            unit_max: Some(max),
            ..plain()
        })
        .unwrap()
        .config_byte()
    };
    assert_eq!(byte(512, 512, 512), 0x10);
    assert_eq!(byte(512, 16384, 512), 0x60);
    assert_eq!(byte(4096, 65536, 4096), 0x83);
    assert_eq!(byte(65536, 1 << 20, 65536), 0xc7);
    // The module is not told what the device could not keep.
    assert_eq!(Limits::new(&profile("explicit16k")).unwrap().config_byte(), 0);
    assert_eq!(Limits::new(&profile("piece16k")).unwrap().config_byte(), 0);
}

#[test]
fn the_byte_s_reader_is_not_told_of_boundary_and_longer_requests() {
    let unsaid = |want: LimitOptions| Limits::new(&want).unwrap().beyond_config_byte();
    assert_eq!(unsaid(plain()), None);
    assert_eq!(unsaid(profile("req16k")), None);
    // Never told of any limits.
    assert_eq!(unsaid(profile("explicit16k+b16k")), None);
    let k = |kib: u64| Some(kib << 10);
    let longer = unsaid(LimitOptions { unit_max: k(16), max_bytes: k(48), ..plain() }).unwrap();
    assert!(longer.contains("up to 48k") && longer.contains("up to 16k only"), "{longer}");
    assert!(!longer.contains("boundary"), "{longer}");
    let bounded = unsaid(profile("req16k+b64k")).unwrap();
    assert!(bounded.contains("a boundary of 64k"), "{bounded}");
    assert!(!bounded.contains("up to"), "{bounded}");
    let both = LimitOptions { boundary: k(64), max_bytes: k(48), ..plain() };
    let both = unsaid(both).unwrap();
    assert!(both.contains("up to 48k") && both.contains("nor that there is a"), "{both}");
}

proptest! {
    /// Linux, `blk_validate_atomic_write_limits`: what does not keep to this is taken for no
    /// limits at all, and what is over the guaranteed length of a bio is cut down to it. Both
    /// without a word, so nothing that is accepted here may come to that.
    #[test]
    fn linux_takes_what_is_accepted(
        lb in 9u32..18,
        unit_min in prop::option::of(bytes()),
        unit_max in prop::option::of(bytes()),
        max_bytes in prop::option::of(bytes()),
        boundary in prop::option::of(bytes()),
        seg_max in 6u32..1023,
    ) {
        let want = LimitOptions {
            logical_block_size: Some(1 << lb),
            unit_min, unit_max, max_bytes, boundary, seg_max,
            ..LimitOptions::default()
        };
        match Limits::new(&want) {
            Err(refused) => {
                let said = refused.to_string();
                prop_assert!(said.contains("use ") || said.contains("leave") || said.contains("add "), "{}", said);
            }
            Ok(limits) if limits.atomic() => {
                let p = &limits.profile;
                prop_assert!(p.unit_min.is_power_of_two() && p.unit_max.is_power_of_two());
                prop_assert!(1 << lb <= p.unit_min && p.unit_min <= p.unit_max);
                prop_assert!(p.unit_max <= p.max_bytes && p.max_bytes < u64::from(u32::MAX));
                prop_assert!(p.max_bytes.is_multiple_of(1 << lb));
                prop_assert!(p.unit_max <= carried_by(seg_max, 1 << lb));
                if p.boundary != 0 {
                    prop_assert!(p.boundary.is_power_of_two() && p.max_bytes <= p.boundary);
                    prop_assert!(p.boundary <= u64::from(u32::MAX));
                }
                // What byte 33 says is what was accepted.
                let byte = limits.config_byte();
                prop_assert!(byte != 0 && byte != 0xff);
                prop_assert_eq!(512 << ((byte >> 4) - 1), p.unit_max);
                prop_assert_eq!(512 << (byte & 15), p.unit_min);
            }
            Ok(limits) => prop_assert_eq!(limits.config_byte(), 0),
        }
    }
}

/// Sizes around those that matter, good and bad.
fn bytes() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (8u32..34).prop_map(|shift| 1 << shift),
        1 => (1u64..1 << 12).prop_map(|blocks| blocks * 512),
        1 => any::<u64>(),
    ]
}

#[test]
fn a_request_s_segments_bound_the_largest_write() {
    // Kernel: rounddown_pow_of_two(2 * block + (segments - 2) * page).
    assert_eq!(carried_by(254, 512), 512 << 10);
    assert_eq!(carried_by(254, 4096), 512 << 10);
    assert_eq!(carried_by(254, 16384), 1 << 20);
    assert_eq!(carried_by(1022, 512), 512 << 10);
    assert_eq!(carried_by(18, 512), 64 << 10);
    assert_eq!(carried_by(17, 512), 32 << 10);
    assert_eq!(carried_by(1, 512), 512);
    let narrow = LimitOptions { unit_max: Some(65536), seg_max: 14, ..plain() };
    assert!(refused(narrow).contains("use 32k or less"));
}

fn scsi() -> LimitOptions {
    let seg_max = FRONT_END_SEG_MAX;
    LimitOptions { seg_max, front_end: FrontEnd::Scsi, ..LimitOptions::default() }
}

#[test]
fn scsi_keeps_whole_what_is_marked_and_what_is_not() {
    for (name, blk, on_scsi) in [
        ("req16k", true, true),
        ("explicit16k", false, true),
        ("piece16k", false, false),
        ("lb512", false, false),
    ] {
        let profile: Option<Profile> = Some(name.parse().unwrap());
        let of = |want| Limits::new(&LimitOptions { profile: profile.clone(), ..want });
        assert_eq!(of(plain()).unwrap().atomic(), blk, "{name}");
        assert_eq!(of(scsi()).unwrap().atomic(), on_scsi, "{name}");
    }
}

#[test]
fn what_scsi_cannot_say_is_refused_with_what_would_work() {
    let k = |kib: u64| Some(kib << 10);
    let mode = Some(AtomicMode::Explicit);
    assert_eq!(carried_by(FRONT_END_SEG_MAX, 512), 256 << 10);
    for want in [
        LimitOptions { unit_max: k(256), ..scsi() },
        LimitOptions { max_bytes: k(48), ..scsi() },
        LimitOptions { unit_max: k(16), boundary: k(64), mode, ..scsi() },
        // The boundary field says it here.
        LimitOptions { unit_max: k(16), max_bytes: k(64), boundary: k(64), mode, ..scsi() },
        LimitOptions { logical_block_size: k(4), unit_min: k(8), unit_max: k(64), ..scsi() },
    ] {
        Limits::new(&want).unwrap();
    }
    for (want, says) in [
        (LimitOptions { unit_max: k(512), ..scsi() }, "use 256k or less"),
        (LimitOptions { unit_max: k(16), max_bytes: k(48), ..scsi() }, "--atomic-unit-max 32k"),
        (LimitOptions { unit_max: k(16), max_bytes: k(64), ..scsi() }, "--atomic-max-bytes 16k"),
        (
            LimitOptions {
                unit_max: k(64),
                max_bytes: k(64 << 10),
                boundary: k(64 << 10),
                ..scsi()
            },
            "use 16m or less",
        ),
        (LimitOptions { logical_block_size: k(8), ..scsi() }, "use 4k or less"),
        (LimitOptions { profile: Some("lba16k".parse().unwrap()), ..scsi() }, "--front-end blk"),
        (LimitOptions { unit_max: k(64), seg_max: 14, ..scsi() }, "use 32k or less"),
    ] {
        let said = refused(want.clone());
        assert!(said.contains(says), "{want:?}: no `{says}` in: {said}");
    }
}

#[test]
fn what_contradicts_itself_is_refused_with_what_would_work() {
    let b = |bytes: u64| Some(bytes);
    let k = |kib: u64| Some(kib << 10);
    for (want, says) in [
        (LimitOptions { logical_block_size: b(256), ..plain() }, "512 to 64k"),
        (LimitOptions { logical_block_size: b(0), ..plain() }, "use 512"),
        (LimitOptions { logical_block_size: b(513), ..plain() }, "use 512 or 1k"),
        (LimitOptions { logical_block_size: k(128), ..plain() }, "512 to 64k"),
        (LimitOptions { physical_block_size: k(2048), ..plain() }, "use at most 1m"),
        (LimitOptions { physical_block_size: b(256), ..plain() }, "use 512 or more"),
        (LimitOptions { physical_block_size: b(5000), ..plain() }, "use 4k or 8k"),
        (LimitOptions { unit_max: k(24), ..plain() }, "use 16k or 32k"),
        (LimitOptions { unit_max: b(u64::MAX), ..plain() }, "no power of two"),
        (LimitOptions { unit_max: b(0), ..plain() }, "leave it out"),
        (LimitOptions { unit_max: k(16), unit_min: b(100), ..plain() }, "use 512"),
        (LimitOptions { unit_max: k(16), unit_min: b(256), ..plain() }, "use 512 or more"),
        (LimitOptions { unit_max: k(16), unit_min: k(32), ..plain() }, "use 16k or less"),
        (LimitOptions { unit_min: k(4), ..plain() }, "add it"),
        (LimitOptions { boundary: k(4), ..plain() }, "--atomic-boundary says nothing"),
        (LimitOptions { mode: Some(AtomicMode::Implicit), ..plain() }, "--atomic-unit-max"),
        (
            LimitOptions { mode: Some(AtomicMode::None), unit_max: k(16), ..plain() },
            "takes no limits",
        ),
        (LimitOptions { unit_max: k(16), max_bytes: k(8), ..plain() }, "use 16k or more"),
        (LimitOptions { unit_max: k(16), max_bytes: b(16385), ..plain() }, "use 16k"),
        (LimitOptions { unit_max: k(16), boundary: k(8), ..plain() }, "use 16k or more"),
        (LimitOptions { unit_max: k(16), boundary: k(24), ..plain() }, "use 16k or 32k"),
        (LimitOptions { unit_max: k(1024), ..plain() }, "use 512k or less"),
        (LimitOptions { unit_max: k(16), max_bytes: k(4 << 20), ..plain() }, "use 2g or less"),
        (LimitOptions { max_bytes: b((2 << 30) + 512), ..plain() }, "--atomic-max-bytes 2"),
        (LimitOptions { unit_max: k(16), boundary: k(4 << 20), ..plain() }, "use 2g or less"),
        (LimitOptions { unit_max: k(16), boundary: b(3 << 30), ..plain() }, "use 2g or less"),
        (LimitOptions { max_bytes: k(16), boundary: k(12), ..plain() }, "use 8k or 16k"),
        (LimitOptions { tear_unit: b(0), ..plain() }, "use 512 or more"),
        (LimitOptions { tear_unit: b(700), ..plain() }, "use 1k"),
        (LimitOptions { tear_unit: k(4), ..profile("lb512") }, "leave one of them out"),
        (LimitOptions { unit_max: k(4), ..profile("req16k") }, "leave one of them out"),
        (LimitOptions { logical_block_size: b(512), ..profile("lb4k") }, "leave one out"),
        (profile("req1m"), "--profile req1m means"),
        (profile("piece700"), "use 1k"),
    ] {
        let said = refused(want.clone());
        assert!(said.contains(says), "{want:?}: no `{says}` in: {said}");
    }
}
