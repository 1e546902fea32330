#pragma once
// The errors of the whole engine: one base, one class per thing a caller can do about it.
// The same tree stands in Python (cocoon.CocoonError and below); cpp/bindings maps it one to one.
// Header only, below every module.

#include <cstring>
#include <exception>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace cocoon {

// A plain Error is a broken invariant of ours or of the system's: nothing below fits.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Nothing has this id, name or prefix, or it was removed meanwhile.
class NotFound : public Error {
 public:
  NotFound(const std::string& message, std::string the_ref) : Error(message), ref(std::move(the_ref)) {}
  std::string ref;
};

// A prefix or name fits several.
class AmbiguousRef : public Error {
 public:
  AmbiguousRef(const std::string& message, std::string the_ref, std::vector<std::string> the_candidates)
      : Error(message), ref(std::move(the_ref)), candidates(std::move(the_candidates)) {}
  std::string ref;
  std::vector<std::string> candidates;
};

class AlreadyExists : public Error {
 public:
  AlreadyExists(const std::string& message, std::string the_name, std::string the_id)
      : Error(message), name(std::move(the_name)), id(std::move(the_id)) {}
  std::string name;
  std::string id;
};

// The message names the argument, its value and what is allowed.
class InvalidArgument : public Error {
 public:
  using Error::Error;
};

// The state that refuses: "running", "creating", …
class InvalidState : public Error {
 public:
  InvalidState(const std::string& message, std::string the_state) : Error(message), state(std::move(the_state)) {}
  std::string state;
};

// Liveness could not be decided: nothing was done.
class Inconclusive : public Error {
 public:
  using Error::Error;
};

// The VMM refused, failed or died. `status` and `body` are its answer, `log_tail` the last lines of its log.
class VmmError : public Error {
 public:
  explicit VmmError(const std::string& message, int the_status = 0, std::string the_body = {},
                    std::string the_log_tail = {})
      : Error(message), status(the_status), body(std::move(the_body)), log_tail(std::move(the_log_tail)) {}
  int status;
  std::string body;
  std::string log_tail;
};

class VmmTimeout : public VmmError {
 public:
  using VmmError::VmmError;
};

// An error of the operating system on one path.
class PathError : public Error {
 public:
  PathError(const std::string& message, std::string the_path, int the_code = 0)
      : Error(message), path(std::move(the_path)), code(the_code) {}
  std::string path;
  int code;  // errno, 0 where none fits
};

// Database or disk.
class StoreError : public PathError {
 public:
  using PathError::PathError;
};

// The ledger cannot be read or written.
class LedgerError : public PathError {
 public:
  using PathError::PathError;
};

// An archive or its metadata was refused.
class CorruptSnapshot : public Error {
 public:
  CorruptSnapshot(const std::string& message, std::string the_path, std::string the_member)
      : Error(message), path(std::move(the_path)), member(std::move(the_member)) {}
  std::string path;
  std::string member;
};

// The caller asked to stop (Ctrl-C): what was begun has been undone.
class Cancelled : public Error {
 public:
  Cancelled() : Error("cancelled") {}
};

// Some of several references failed. `errors` is keyed by the reference as given.
class BulkError : public Error {
 public:
  BulkError(const std::string& message, std::vector<std::string> the_succeeded,
            std::map<std::string, std::exception_ptr> the_errors)
      : Error(message), succeeded(std::move(the_succeeded)), errors(std::move(the_errors)) {}
  std::vector<std::string> succeeded;
  std::map<std::string, std::exception_ptr> errors;
};

// "open /x: Permission denied", with errno's own words.
inline std::string system_message(const std::string& what, int code) { return what + ": " + std::strerror(code); }

}  // namespace cocoon
