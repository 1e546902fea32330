#pragma once
// Text of others: is it UTF-8, and how it is shown in a message of ours.

#include <string>
#include <string_view>

namespace cocoon::metering {

// Strict UTF-8: no overlong forms, no surrogates, nothing past U+10FFFF.
bool is_utf8(std::string_view text);

// The text in double quotes, fit for one line of a log: control characters and, where it is not UTF-8, all bytes past
// ASCII are written \xNN; what is longer than 80 bytes is cut, and says how long it was.
std::string quote(std::string_view text);

}  // namespace cocoon::metering
