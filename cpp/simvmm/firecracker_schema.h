#pragma once
// Bodies that Firecracker 1.17 takes: the structures of its API server, field by field in its order.

#include "simvmm/json.h"

namespace cocoon::simvmm::firecracker {

extern const Schema kAction;
extern const Schema kBalloon;
extern const Schema kBalloonStatsUpdate;
extern const Schema kBalloonUpdate;
extern const Schema kBootSource;
extern const Schema kDrive;
extern const Schema kDriveUpdate;
extern const Schema kEntropy;
extern const Schema kLogger;
extern const Schema kMachineConfig;
extern const Schema kMachineConfigUpdate;
extern const Schema kMemoryHotplug;
extern const Schema kMemoryHotplugUpdate;
extern const Schema kMetrics;
extern const Schema kMmdsConfig;
extern const Schema kNetworkInterface;
extern const Schema kNetworkInterfaceUpdate;
extern const Schema kPmem;
extern const Schema kPmemUpdate;
extern const Schema kSerial;
extern const Schema kSnapshotCreate;
extern const Schema kSnapshotLoad;
extern const Schema kVm;
extern const Schema kVsock;

}  // namespace cocoon::simvmm::firecracker
