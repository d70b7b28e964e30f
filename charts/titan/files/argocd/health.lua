-- Argo CD's health of a Cell or a CellFleet, by the conditions of its status.
-- Argo CD runs it without the libraries string and math.
local generation = obj.metadata.generation or 0
local status = obj.status or {}

-- A condition that speaks of an older spec says nothing of this one.
local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  if condition.observedGeneration == nil or condition.observedGeneration >= generation then
    conditions[condition.type] = condition
  end
end

local function is(type, value)
  return conditions[type] ~= nil and conditions[type].status == value
end

local function health(value, type)
  local condition = conditions[type]
  local message = condition.message
  if message == nil or message == "" then
    message = condition.reason or type
  end
  return { status = value, message = message }
end

if (status.observedGeneration or -1) < generation then
  return { status = "Progressing", message = "waiting for the operator to look at generation " .. generation }
end
if is("Stalled", "True") then
  return health("Degraded", "Stalled")
end
if obj.metadata.deletionTimestamp ~= nil then
  return { status = "Progressing", message = "being deleted" }
end
if is("Paused", "True") then
  return health("Suspended", "Paused")
end
if is("Ready", "True") then
  return health("Healthy", "Ready")
end
if is("Ready", "False") then
  return health("Degraded", "Ready")
end
if conditions["Ready"] ~= nil then
  return health("Progressing", "Ready")
end
return { status = "Progressing", message = "no condition Ready yet" }
