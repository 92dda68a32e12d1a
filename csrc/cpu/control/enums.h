// What the integers of the state mean, as in rsd_kernels/state/enums.py and the modules named
// below.

#ifndef RSD_CPU_CONTROL_ENUMS_H_
#define RSD_CPU_CONTROL_ENUMS_H_

#include <stdint.h>

namespace Role {
enum : int32_t { DRAFT = 0, TARGET = 1, PRM = 2 };
}
namespace Phase {
enum : int32_t {
    FREE = 0,
    DRAFT = 1,
    SCORE = 2,
    TARGET = 3,
    WAIT_HOST = 4,
    DONE = 5,
    GUESS = 6,
    PROMPT = 7,
    CANDIDATE = 8,
    CHOICE = 9
};
}
namespace Mode {
enum : int32_t { RSD = 0, DRAFT = 1, TARGET = 2 };
}
namespace GuessSource {
enum : int32_t { DRAFT = 0, REJECTED = 1, NGRAM = 2 };
}
namespace Speculation {
enum : int32_t { NONE = 0, DRAFT = 1, REJECTED = 2, NGRAM = 4 };
}
namespace Finish {
enum : int32_t {
    NONE = 0,
    STOP_TOKEN = 1,
    STOP_STRING = 2,
    LENGTH = 3,
    STEPS = 4,
    ERROR = 5,
    PRM_FULL = 6
};
}
namespace HostRequest {
enum : int32_t { NONE = 0, RETURN = 1, RETURN_WHEN_FREE = 2 };
}
namespace RecordKind {
enum : int32_t { KEPT = 1, REJECTED = 2, DROPPED = 3, PART = 4 };
}
namespace Purpose {
enum : int32_t {
    DRAFT_TOKEN = 0,
    TARGET_TOKEN = 1,
    ACCEPT = 2,
    CHOOSE_DRAFT = 3,
    CHOOSE_TARGET = 4
};
}
namespace BatchingRule {  // rsd_kernels/schedule/rules.py
enum : int32_t { MOST_READY = 0, EVERY_ROLE = 1, LOCK_STEP = 2 };
}
namespace PolicyKind {  // rsd_kernels/policy/formula.py
enum : int32_t { CONSTANT = 0, THRESHOLD = 1, CLIP = 2, SIGMOIDAL = 3, LOGISTIC = 4 };
}

constexpr int32_t NUM_ROLES = 3;
constexpr int32_t MAX_DELIMITER_STATES = 64;
constexpr int32_t MAX_STOP_STATES = 256;
constexpr int32_t MOVE_SHIFT = 8;
constexpr int32_t MAX_STOP_TOKENS = 32;
constexpr int32_t MAX_LOGPROBS = 20;
constexpr int32_t MAX_CUT_TOKENS = 8;
constexpr int32_t LOG_HEADER = 9;
constexpr int32_t LOGPROB_WORDS = 2;
constexpr int32_t NOT_FINITE = -1;
constexpr int32_t RATE_ONE = 65536;
constexpr int32_t RATE_STEPS = 32;

// rsd_kernels/state/tables.py
constexpr int32_t BY_TEXT = -2;
constexpr int32_t JOINS_NEXT = 1;
constexpr int32_t JOINS_PREVIOUS = 2;
constexpr int32_t ENDS_LINE = 4;
constexpr int32_t STARTS_LINE = 8;
constexpr int32_t UNCERTAIN = 16;
constexpr int32_t UNSETTLES = 32;
constexpr int32_t MAX_WORD_BYTES = 1024;

// rsd_kernels/schedule/rules.py
constexpr int32_t STARVED_AFTER = 16;
constexpr int32_t LONGEST_PHASE = 1024;

// rsd_kernels/guess/twin.py
constexpr int32_t MAX_MATCH = 3;
constexpr int32_t MIN_MATCH = 2;
constexpr int32_t NGRAM_GUESSES = 8;
constexpr int32_t RATE_SHIFT = 4;
constexpr int32_t DRIFT_SHIFT = 6;

#endif  // RSD_CPU_CONTROL_ENUMS_H_
