//! Several modules, with arguments.

use super::*;

fn three() -> [Module; 3] {
    [
        module("dom0", &[1; 5000], Some("console=hvc0 root=/dev/xvda")),
        module("initrd", &[2; 4096], None),
        module("policy", &[3], Some("")),
    ]
}

fn string(memory: &GuestRam, at: u64) -> String {
    let bytes = bytes(memory, at, 100);
    let text = bytes.split(|&byte| byte == 0).next().unwrap();
    String::from_utf8(text.to_vec()).unwrap()
}

/// The modules' places do not overlap one another, nor the kernel.
#[track_caller]
fn assert_apart(places: &[std::ops::Range<u64>]) {
    for (index, place) in places.iter().enumerate() {
        assert_eq!(place.start % 4096, 0);
        assert!(place.start >= MIB + 0x1000, "{place:x?}");
        for other in &places[index + 1..] {
            assert!(place.end <= other.start || other.end <= place.start);
        }
    }
}

#[test]
fn a_multiboot_kernel_gets_all_of_them_above_it_in_their_order() {
    let image = multiboot_elf(Elf::narrow(), 0b11).build();
    let (memory, entry) = boot_with(&image, &three(), "");
    assert!(entry.is_ok());
    let field = |offset: u64| u32_at(&memory, 0x6000 + offset);
    assert_eq!(field(20), 3);
    let list = u64::from(field(24));
    let word = |n: u64, at: u64| u64::from(u32_at(&memory, list + 16 * n + at));
    let places: Vec<_> = (0..3).map(|n| word(n, 0)..word(n, 4)).collect();
    assert_apart(&places);
    assert!(places.is_sorted_by_key(|place| place.start));
    for ((n, place), (value, length)) in (0..).zip(&places).zip([(1, 5000), (2, 4096), (3, 1)]) {
        assert_eq!(bytes(&memory, place.start, length), vec![value; length]);
        assert_eq!(place.end - place.start, length as u64, "module {n}");
    }
    let strings = [0, 1, 2].map(|n| string(&memory, word(n, 8)));
    assert_eq!(
        strings,
        ["dom0 console=hvc0 root=/dev/xvda", "initrd", "policy "]
    );
}

#[test]
fn a_pvh_kernel_gets_all_of_them_with_their_arguments() {
    let (memory, entry) = boot_with(&pvh().build(), &three(), "");
    assert!(entry.is_ok());
    assert_eq!(u32_at(&memory, 0x600c), 3);
    let list = u64_at(&memory, 0x6010);
    let word = |n: u64, at: u64| u64_at(&memory, list + 32 * n + at);
    let places: Vec<_> = (0..3)
        .map(|n| word(n, 0)..word(n, 0) + word(n, 8))
        .collect();
    assert_apart(&places);
    for (place, value) in places.iter().zip(1..) {
        let length = usize::try_from(place.end - place.start).unwrap();
        assert_eq!(bytes(&memory, place.start, length), vec![value; length]);
    }
    assert_eq!(string(&memory, word(0, 16)), "console=hvc0 root=/dev/xvda");
    assert_eq!(word(1, 16), 0, "none");
    assert_eq!(string(&memory, word(2, 16)), "");
}

#[test]
fn modules_that_do_not_fit_together_are_refused_by_name_and_the_memory_untouched() {
    let half = vec![1; usize::try_from(8 * MIB).unwrap()];
    let two = [module("first", &half, None), module("second", &half, None)];
    let multiboot = multiboot_elf(Elf::narrow(), 0).build();
    for image in [pvh().build(), multiboot, multiboot2_elf(&[]).build()] {
        let (memory, result) = boot_with(&image, &two, "");
        assert!(matches!(
            result,
            Err(LoadError::ModuleTooBig { file, size, room })
                if file == "second" && size == 8 * MIB && room < 7 * MIB
        ));
        assert_untouched(&memory);
        let (memory, result) = boot_with(&image, &[two[0].clone(), module("e", b"", None)], "");
        assert!(matches!(result, Err(LoadError::ModuleEmpty { file }) if file == "e"));
        assert_untouched(&memory);
    }
}

#[test]
fn more_modules_or_longer_arguments_than_there_is_room_for_are_refused() {
    let many = vec![module(&"m".repeat(60), b"x", None); 3500];
    let long = [module("module", b"x", Some(&"y".repeat(200_000)))];
    let multiboot = multiboot_elf(Elf::narrow(), 0).build();
    for image in [pvh().build(), multiboot, multiboot2_elf(&[]).build()] {
        for modules in [&many[..], &long] {
            let (memory, result) = boot_with(&image, modules, "");
            assert!(
                matches!(result, Err(LoadError::TooManyModules { .. })),
                "{result:?}"
            );
            assert_untouched(&memory);
        }
        let hundred = vec![module("module", b"x", Some("z")); 100];
        assert!(boot_with(&image, &hundred, "").1.is_ok());
    }
}

#[test]
fn linux_takes_one_initrd_without_arguments() {
    for image in [bzimage(), Elf::wide().build()] {
        let (memory, result) = boot_with(&image, &three(), "");
        assert!(matches!(result, Err(LoadError::SeveralInitrds(3))));
        assert_untouched(&memory);
        let (memory, result) = boot_with(&image, &three()[..1], "");
        assert!(matches!(result, Err(LoadError::InitrdArguments { file }) if file == "dom0"));
        assert_untouched(&memory);
        assert!(boot_with(&image, &three()[1..2], "").1.is_ok());
    }
}
