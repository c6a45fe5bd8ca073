//! What is not supported is refused as the protocol wants: `docs/packets.md`.

use super::*;

/// A packet of each row of `docs/packets.md` that says "no".
const REFUSED: [&str; 83] = [
    "A6,0,6162",
    "b9600",
    "B1000,S",
    "d",
    "i",
    "I",
    "r",
    "tAA:bb,c",
    "bc",
    "bs",
    "F0",
    "vCtrlC",
    "vFile:setfs:0",
    "vFile:open:2f,0,0",
    "vFile:pread:1,10,0",
    "vFile:readlink:2f",
    "vFlashErase:0,10",
    "vFlashWrite:0:a",
    "vFlashDone",
    "vMustReplyEmpty",
    "vStopped",
    "Z3,9000,1",
    "z3,9000,1",
    "QAgent:1",
    "QAllow:WriteMem:1",
    "QCatchSyscalls:1",
    "QDisableRandomization:1",
    "QEnvironmentHexEncoded:41",
    "QEnvironmentReset",
    "QEnvironmentUnset:41",
    "QSetWorkingDir:2f",
    "QStartupWithShell:1",
    "qGetTIBAddr:1",
    "qGetTLSAddr:1,0,0",
    "qL1100000000000000000",
    "qMemTags:0,1:1",
    "QMemTags:0,1:1:0",
    "QNonStop:1",
    "qOffsets",
    "qP0000001f0000000000000001",
    "QPassSignals:e;10",
    "QProgramSignals:0;1",
    "qSymbol::",
    "QThreadEvents:1",
    "QThreadOptions;1:1",
    "qTBuffer:0,10",
    "QTBuffer:circular:1",
    "QTDP:1:0000000000001000:E:0:0",
    "QTDPsrc:1:1000:at:0:1:41",
    "QTDV:1:0:0:41",
    "QTDisable:1:1000",
    "QTEnable:1:1000",
    "QTFrame:0",
    "qTfP",
    "qTfSTM",
    "qTfV",
    "QTinit",
    "qTMinFTPILen",
    "QTNotes:user:41",
    "qTP:1:1000",
    "QTro:0,10",
    "QTSave:41",
    "qTsP",
    "QTStart",
    "qTStatus",
    "QTStop",
    "qTSTMat:1000",
    "qTV:1",
    "qXfer:auxv:read::0,10",
    "qXfer:exec-file:read::0,10",
    "qXfer:libraries:read::0,10",
    "qXfer:libraries-svr4:read::0,10",
    "qXfer:osdata:read::0,10",
    "qXfer:siginfo:read::0,10",
    "qXfer:uib:read:0:0,10",
    "qXfer:btrace:read:all:0,10",
    "qXfer:btrace-conf:read::0,10",
    "Qbtrace:bts",
    "Qbtrace-conf:bts:size=1000",
    "qXfer:memory-map:read::0,10",
    "qXfer:traceframe-info:read::0,10",
    "qXfer:fdpic:read:exec:0,10",
    "jThreadsInfo",
];

#[test]
fn what_is_not_supported_has_an_empty_reply_and_changes_nothing() {
    let mut rig = nops(1);
    let before = rig.ask("g");
    for packet in REFUSED {
        assert_eq!(rig.ask(packet), "", "{packet}");
    }
    assert_eq!(rig.ask("g"), before);
    assert!(rig.ask("vCont;s:1").starts_with("T05"));
    assert_eq!(rig.plans.len(), 1);
}

#[test]
fn what_is_not_supported_is_not_announced() {
    let mut rig = nops(1);
    let features = rig.ask("qSupported:multiprocess+;QThreadEvents+;no-resumed+");
    for feature in [
        "multiprocess+",
        "QPassSignals",
        "QThreadEvents",
        "QNonStop",
        "qXfer:memory-map",
        "Tracepoint",
        "ReverseStep",
    ] {
        assert!(!features.contains(feature), "{features}");
    }
}
