// Our errors in Python: the classes are those of cocoon.errors, mapped one to one in one place.

#include <string>
#include <vector>

#include "bindings/support.h"

namespace cocoon::bindings {
namespace {

using namespace py::literals;

template <typename... Facts>
py::object make(const char* name, const std::exception& error, Facts&&... facts) {
  return py::module_::import("cocoon.errors").attr(name)(to_str(error.what()), std::forward<Facts>(facts)...);
}

py::list to_strs(const std::vector<std::string>& texts) {
  py::list made;
  for (const auto& text : texts) made.append(to_str(text));
  return made;
}

}  // namespace

py::object to_python(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const NotFound& e) {
    return make("NotFound", e, "ref"_a = to_str(e.ref));
  } catch (const AmbiguousRef& e) {
    return make("AmbiguousRef", e, "ref"_a = to_str(e.ref), "candidates"_a = to_strs(e.candidates));
  } catch (const AlreadyExists& e) {
    return make("AlreadyExists", e, "name"_a = to_str(e.name), "id"_a = to_str(e.id));
  } catch (const InvalidArgument& e) {
    return make("InvalidArgument", e);
  } catch (const InvalidState& e) {
    return make("InvalidState", e, "state"_a = to_str(e.state));
  } catch (const Inconclusive& e) {
    return make("Inconclusive", e);
  } catch (const VmmTimeout& e) {
    return make("VmmTimeout", e, "status"_a = e.status, "body"_a = to_str(e.body), "log_tail"_a = to_str(e.log_tail));
  } catch (const VmmError& e) {
    return make("VmmError", e, "status"_a = e.status, "body"_a = to_str(e.body), "log_tail"_a = to_str(e.log_tail));
  } catch (const LedgerError& e) {
    return make("LedgerError", e, "path"_a = to_path_str(e.path), "code"_a = e.code);
  } catch (const PathError& e) {
    return make("StoreError", e, "path"_a = to_path_str(e.path), "code"_a = e.code);
  } catch (const CorruptSnapshot& e) {
    return make("CorruptSnapshot", e, "path"_a = to_path_str(e.path), "member"_a = to_path_str(e.member));
  } catch (const BulkError& e) {
    py::dict errors;
    for (const auto& [ref, one] : e.errors) errors[to_str(ref)] = to_python(one);
    return make("BulkError", e, "succeeded"_a = to_strs(e.succeeded), "errors"_a = errors);
  } catch (const py::error_already_set& e) {
    return e.value();
  } catch (const std::exception& e) {
    return make("CocoonError", e);
  }
}

void register_errors() {
  // NOLINTNEXTLINE(performance-unnecessary-value-param): pybind11's type says so
  py::register_local_exception_translator([](std::exception_ptr error) {
    if (!error) return;
    try {
      std::rethrow_exception(error);
    } catch (const Error&) {
      const py::object raised = to_python(error);
      PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(raised.ptr())), raised.ptr());
    }
  });
}

}  // namespace cocoon::bindings
